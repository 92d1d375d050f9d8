"""
Predictions against references, unit by unit: jiwer counts and aligns, the rest of the package only adds up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jiwer

Metric = Literal["wer", "ipa_cer"]
Kind = Literal["equal", "substitute", "delete", "insert"]


class Step(NamedTuple):
    """
    One unit of an alignment; "" on the side that has none.
    """

    kind: Kind
    reference: str
    prediction: str


@dataclass(frozen=True, slots=True)
class Tally:
    """
    Counted errors, of one clip or of many.
    """

    units: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """
        Substitutions, deletions and insertions together.
        """
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """
        Errors per unit; the bare number of errors where the references have no unit, as jiwer has it.
        """
        return self.errors / self.units if self.units else float(self.errors)


@dataclass(frozen=True, slots=True)
class Alignment:
    """
    How one prediction differs from its reference. Units are words, for IPA characters.
    """

    reference: Sequence[str]
    prediction: Sequence[str]
    tally: Tally
    _chunks: Sequence[Any] = field(repr=False)

    def steps(self) -> Iterator[Step]:
        """
        Yield the alignment from left to right, one unit at a time.
        """
        for chunk in self._chunks:
            said = self.reference[chunk.ref_start_idx : chunk.ref_end_idx]
            heard = self.prediction[chunk.hyp_start_idx : chunk.hyp_end_idx]
            for number in range(max(len(said), len(heard))):
                yield Step(chunk.type, said[number] if said else "", heard[number] if heard else "")


def align(predictions: Sequence[str], references: Sequence[str], metric: Metric = "wer") -> tuple[float, list[Alignment]]:
    """
    Return the corpus figure, which is jiwer's own, and every clip's alignment.

    Args:
        predictions: normalised texts.
        references: normalised texts in the same order.
        metric: compare words ("wer") or characters ("ipa_cer").
    """
    process = jiwer.process_words if metric == "wer" else jiwer.process_characters
    out = process(list(references), list(predictions))
    figure = float(out.wer if metric == "wer" else out.cer)
    rows = zip(out.references, out.hypotheses, out.alignments, strict=True)
    return figure, [Alignment(said, heard, _tally(len(said), chunks), chunks) for said, heard, chunks in rows]


def total(tallies: Iterable[Tally]) -> Tally:
    """
    Add up *tallies*.
    """
    units = substitutions = deletions = insertions = 0
    for tally in tallies:
        units += tally.units
        substitutions += tally.substitutions
        deletions += tally.deletions
        insertions += tally.insertions
    return Tally(units, substitutions, deletions, insertions)


def _tally(units: int, chunks: Sequence[Any]) -> Tally:
    counts = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in chunks:
        counts[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return Tally(units, counts["substitute"], counts["delete"], counts["insert"])
