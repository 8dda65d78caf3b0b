"""Run an audit as a job of a Ray cluster. Only the configuration is sent; the job is `crossaudit run` on the head."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from audit.errors import AuditError, first_line
from pipelines.engine.ray_token import TOKEN

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# Ray passes the job's id and the metadata of its submission to the driver in this variable.
_OWN = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# This variable names a function that Ray's workers call when they start. The job's supervisor is one of these workers.
_HOOK = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "pipelines.engine.ray_jobs.name_python"}
_PYTHON = "CROSSAUDIT_PYTHON"
_ID, _ADDRESS = "job_submission_id", "crossaudit_address"
# Seconds between two polls of a job, and seconds that a submission waits for the run to start.
_LOOK, _PATIENCE = 0.5, 60.0


@dataclass(frozen=True)
class Job:
    """A job of the cluster whose job server is at `address` (None if crossaudit did not submit it)."""

    id: str
    address: str | None


def current_job() -> Job | None:
    """Return the job that this process is the driver of, or None."""
    known = json.loads(os.environ.get(_OWN) or "{}").get("metadata", {})
    return Job(known[_ID], known.get(_ADDRESS)) if _ID in known else None


def name_python() -> None:
    """Tell the shell that starts the job which Python the head uses. PATH may name another Python, or none."""
    os.environ[_PYTHON] = sys.executable


class Cluster:
    """A client of a Ray cluster's job server.

    Args:
        address: The address of the job server, http://HEAD:8265.

    Raises:
        AuditError: The address is unknown, or the server does not respond.
    """

    def __init__(self, address: str | None) -> None:
        if address is None:
            what = "the address of its cluster is unknown, because it was not submitted by crossaudit"
            raise AuditError(what, hint="Pass --address http://HEAD:8265.")
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)
        # These variables would override the address given here.
        with _asked(address), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self._client = JobSubmissionClient(address, headers=_token(address))
            self.address: str = self._client.get_address()

    def submit(self, given: Mapping[str, Any], out: str, log_level: str) -> Job:
        """Submit a run.

        Args:
            given: The configuration. It holds only absolute paths and URIs.
            out: The run.
            log_level: The lowest level that the run logs.

        Raises:
            AuditError: The cluster accepts jobs without a token.
        """
        self._require_token()
        # The job uses the cluster that it is submitted to.
        engine = {**(given.get("engine") or {}), "address": "auto"}
        settings = yaml.safe_dump({**given, "engine": engine, "out": out}, allow_unicode=True, sort_keys=False)
        with tempfile.TemporaryDirectory() as folder, _asked(self.address):
            Path(folder, "audit.yaml").write_text(settings, encoding="utf-8")
            id_ = self._client.submit_job(
                entrypoint=f'"${_PYTHON}" -m pipelines.cli run audit.yaml --log-level {log_level}',
                runtime_env={"working_dir": folder, "env_vars": _HOOK},
                submission_id=f"crossaudit-{uuid.uuid4().hex[:8]}",
                metadata={_ADDRESS: self.address},
            )
        return Job(id_, self.address)

    def await_start(self, id_: str, begun: Callable[[], bool]) -> str:
        """Wait until the job has ended, its run has begun, or a minute has passed.

        Args:
            id_: The job.
            begun: Returns whether the run has begun.

        Returns:
            The status of the job.

        Raises:
            AuditError: The job failed. The message ends with the last lines that it printed.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            details = self._details(id_)
            if details.status.is_terminal():
                return self._ended(details, self.logs(id_))
            if begun() or time.monotonic() > until:
                return details.status.value
            time.sleep(_LOOK)

    def follow(self, id_: str, write: Callable[[str], None]) -> str:
        """Pass the job's output to `write` until the job ends, and return its status.

        Raises:
            AuditError: The job failed.
        """

        async def read() -> None:
            async for lines in self._client.tail_job_logs(id_):
                write(lines)

        with _asked(self.address):
            asyncio.run(read())
        # The last lines may arrive before the job server reports the end.
        while not (details := self._details(id_)).status.is_terminal():
            time.sleep(_LOOK)
        return self._ended(details)

    def logs(self, id_: str) -> str:
        """Return what the job has printed so far."""
        with _asked(self.address):
            return self._client.get_job_logs(id_)

    def status(self, id_: str) -> str:
        """Return PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED. Raises AuditError if there is no such job."""
        return self._details(id_).status.value

    def stop(self, id_: str) -> bool:
        """Ask the job to stop. Returns whether it was running."""
        with _asked(self.address):
            return self._client.stop_job(id_)

    def _require_token(self) -> None:
        with _asked(self.address):
            found = self._client._do_request("GET", "/api/authentication_mode")
            mode = found.json().get("authentication_mode") if found.ok else None
        if mode in (None, "disabled"):
            what = "the cluster requires no token, so anyone who can reach it can run code on it"
            hint = "Start it with RAY_AUTH_MODE=token and a token on every machine (docs/how-to/cluster.md)."
            raise AuditError(what, where=self.address, hint=hint)

    def _details(self, id_: str) -> JobDetails:
        with _asked(self.address):
            return self._client.get_job_info(id_)

    def _ended(self, details: JobDetails, printed: str = "") -> str:
        """Return the status of a job that has ended. Raises AuditError with its last output lines if it failed."""
        if details.status.value != "FAILED":
            return details.status.value
        words = "\n".join(["", *printed.strip().splitlines()[-5:]])
        what, hint = f"failed with exit code {details.driver_exit_code}{words}", None
        if details.driver_exit_code is None:
            what, hint = (
                f"did not start: {details.message}",
                "Is crossaudit installed in the Python environment of the cluster's head?",
            )
        raise AuditError(what, where=f"job {details.submission_id}", hint=hint)


def _token(address: str) -> dict[str, str]:
    """Return the header with the token for a cluster on this machine, else {}.

    Since version 2.59, a local Ray requires the token that it created. It must not be sent to other machines unasked.
    """
    here = urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")
    if not here or "RAY_AUTH_MODE" in os.environ or not TOKEN.expanduser().is_file():
        return {}
    return {"Authorization": f"Bearer {TOKEN.expanduser().read_text().strip()}"}


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Remove environment variables within this context."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _asked(address: str) -> Iterator[None]:
    """Turn the errors of a request to the job server into AuditError."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        hint = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the head."
        raise AuditError("the cluster's token is missing or wrong", where=address, hint=hint) from error
    except (OSError, RuntimeError, ValueError) as error:
        hint = (
            "Is the cluster running, and is this the address of its dashboard (http://HEAD:8265)? The dashboard needs "
            "ray[default]."
        )
        raise AuditError(f"the request failed: {first_line(error)}", where=address, hint=hint) from error
