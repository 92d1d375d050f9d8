"""
A call of the volume's S3 protocol, patiently: what passes by itself is tried again, what does not becomes a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from kidspeech.errors import VolumeError
from kidspeech.runpod.clock import Clock
from kidspeech.runpod.models import NetworkVolume
from kidspeech.runpod.settings import S3Settings

log = logging.getLogger(__name__)
R = TypeVar("R")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts


class TooLargeError(VolumeError):
    """
    The service takes smaller parts only.
    """


def connect(s3: S3Settings, volume: NetworkVolume) -> Any:
    """
    Return a client; endpoint and region follow from it where the settings leave them empty.
    """
    import boto3
    from botocore.config import Config

    settings = Config(
        region_name=s3.region or volume.data_center.upper(),
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": 1},  # ours below know 524, 507 and fresh 403
        connect_timeout=30,
        read_timeout=600,
        max_pool_connections=16,
        request_checksum_calculation="when_required",  # trailers are not documented to be understood
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint or f"https://s3api-{volume.data_center.lower()}.runpod.io/",
        aws_access_key_id=s3.access_key.get_secret_value(),
        aws_secret_access_key=s3.secret_key.get_secret_value(),
        config=settings,
    )


class Patience:
    """
    Calls until it works, or until there is no hope.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, call: Callable[[], R], *, missing: bool = False, forbidden: bool = False) -> R | None:
        """
        Call until it works, pausing between; None for what is not there, where *missing* allows it.

        Raises:
            VolumeError: it does not work; TooLargeError for 413.
        """
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        for pause in (*PAUSES, None):
            try:
                return call()
            except ClientError as error:
                status, code = _status(error)
                if missing and (status == 404 or code in {"NoSuchKey", "NoSuchUpload"}):
                    return None
                if pause is None or not (status in {429, 500, 502, 503, 504, 524} or (status == 403 and forbidden)):
                    raise _refusal(status, code) from None  # the cause holds the signed request
                log.info("the volume answered %d %s; trying again", status, code)
            except (HTTPClientError, ConnectionError) as error:
                if pause is None:
                    msg = f"the volume's S3 address does not answer: {type(error).__name__}"
                    raise VolumeError(msg) from None
                log.info("the volume's connection failed (%s); trying again", type(error).__name__)
            except BotoCoreError as error:
                msg = f"the volume's S3 settings can't be used: {type(error).__name__}"
                raise VolumeError(msg) from None
            self._clock.sleep(pause)
        raise AssertionError  # the last pause is None


def full_volume() -> VolumeError:
    """
    Return the error of a volume that takes no more.
    """
    return VolumeError(
        "the volume is full: `kidspeech runpod clean` shows what can go, or make it larger in RunPod's console "
        "(it can't be made smaller again). What is there already stays; the same command goes on from it."
    )


def _status(error: Any) -> tuple[int, str]:
    answer = error.response
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), str(answer.get("Error", {}).get("Code", ""))


def _refusal(status: int, code: str) -> VolumeError:
    if status == 413 or code == "EntityTooLarge":
        return TooLargeError("the volume's S3 address takes no parts of this size")
    if status == 507:
        return full_volume()
    if status in {401, 403}:
        return VolumeError(
            f"the volume's S3 address refuses the key ({status} {code}): AWS_ACCESS_KEY_ID is an S3 key of RunPod's "
            "settings (user_…), not the API key, and RUNPOD_S3_BUCKET is the volume's id"
        )
    return VolumeError(f"the volume's S3 address answered {status} {code}")
