"""
The project's commands: `nox -s lint`, `nox -s test`, `nox -s bench -- prepare FOLDER`.

Each installs what it needs, with the versions of constraints.txt.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "test"]

CONSTRAINTS = ("-c", "constraints.txt")
# What mypy reads; torch and the like ship no types worth the minutes
TYPED = ("filelock", "httpx", "numpy", "pydantic", "rich", "typer")
GROUPS = nox.project.load_toml("pyproject.toml")


@nox.session
def lint(session: nox.Session) -> None:
    """
    Check style, format and types, the types over the package as it installs.
    """
    session.install(*CONSTRAINTS, *nox.project.dependency_groups(GROUPS, "lint"), *TYPED)
    session.install("--no-deps", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    configuration = Path("pyproject.toml").resolve()
    with session.chdir(session.create_tmp()):  # here, mypy would take the folder kidspeech/, which lacks kidspeech.cli
        session.run("mypy", "--config-file", str(configuration))


@nox.session
def container(session: nox.Session) -> None:
    """
    Make .nox/container, a virtual environment with the contest container's versions, in which test_submission runs a zip.
    """
    session.install("-r", "tests/container.txt")


@nox.session
def test(session: nox.Session) -> None:
    """
    Run all tests; arguments after -- go to pytest, like -m "not slow".
    """
    _test(session, "--numprocesses", "auto", *session.posargs)


def _test(session: nox.Session, *arguments: str) -> None:
    session.install(*CONSTRAINTS, "-e", ".", *nox.project.dependency_groups(GROUPS, "test"))
    session.run("pytest", *arguments)


@nox.session
def bench(session: nox.Session) -> None:
    """
    Measure one of tests/bench: its name and its arguments go after --, like prepare ../shared/kids --large 100000.
    """
    name, *arguments = session.posargs or ["prepare", "--help"]
    session.install(*CONSTRAINTS, "-e", ".", *nox.project.dependency_groups(GROUPS, "test"))
    session.run("python", f"tests/bench/{name}.py", *arguments)
