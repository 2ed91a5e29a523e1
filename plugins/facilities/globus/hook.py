"""The hook for Globus: the only place that sends it requests.

globus_sdk would send every request, POSTs included, up to six times over minutes. Here it sends each request
once with a short timeout; `GlobusHook` repeats those that may be repeated, a few times, so that a worker does
not fail for a hiccup, and callers decide about anything longer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import globus_sdk
import tenacity
from airflow.sdk import BaseHook

from facilities.errors import FacilityError, UserError
from facilities.globus.connection import (
    GlobusSettings,
    TokenReplyError,
    ask_token,
    credentials_of,
    transfer_client,
)
from facilities.globus.errors import (
    Call,
    ExistsError,
    PausedError,
    explain,
    read_documents,
    read_field,
    read_json,
)
from facilities.globus.model import (
    ENDINGS,
    FileEntry,
    TaskSnapshot,
    check_collection,
    check_path,
    check_task_id,
    describe_event,
    describe_pause_rules,
    pause_reasons,
)
from facilities.globus.submission import Request
from facilities.retries import resending
from facilities.tokens import Token, Tokens, shared_tokens

T = TypeVar("T")
# Warns about each failed request without its name, which the errors raised here have.
logging.getLogger("globus_sdk.transport.requests").setLevel(logging.ERROR)

_MAX_PAUSE = 30.0
_REPORT_LIMIT = 2000
_EVENTS = 5  # of which the newest that says why is reported


class GlobusHook(BaseHook):
    """Calls Globus Transfer as a confidential client. May be shared between threads.

    Example::

        with closing(GlobusHook("globus_default")) as hook:
            for entry in hook.list_folder("df82346e-9a15-11ea-b3c4-0ae144191ee3", "/2023/02"):
                print(entry.name, entry.size)

    :param globus_conn_id: connection of type `globus`.
    :param attempts: how often a request is sent when Globus cannot answer at the moment.
    :param first_pause: seconds before the second attempt; doubled each time.
    :param http_timeout: seconds that a request may take.
    :param own_tokens: share no lock with other hooks of the process.

    Every method raises `TransientError` when Globus stays silent or busy, `CredentialsError` when it
    refuses the client, `NotFoundError` and other `UserError`s when it refuses what was asked.
    """

    conn_name_attr = "globus_conn_id"
    default_conn_name = "globus_default"
    conn_type = "globus"
    hook_name = "Globus"
    ids_per_request = 100  # of tasks; keeps the URL under 4 kB

    def __init__(
        self,
        globus_conn_id: str = default_conn_name,
        *,
        attempts: int = 4,
        first_pause: float = 1.0,
        http_timeout: float = 30.0,
        settings: GlobusSettings | None = None,
        own_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.globus_conn_id = globus_conn_id
        self.attempts = attempts
        self.first_pause = first_pause
        self.http_timeout = http_timeout
        self._settings = settings
        self._own_tokens = own_tokens
        self._scopes: list[str] = []
        self._tokens: Tokens | None = None
        self._transfer: globus_sdk.TransferClient | None = None
        self._lock = threading.RLock()

    @property
    def settings(self) -> GlobusSettings:
        """The connection's fields; read once."""
        if self._settings is None:
            connection = self.get_connection(self.globus_conn_id)
            self._settings = GlobusSettings.from_connection(connection, self.globus_conn_id)
        return self._settings

    def forget(self) -> None:
        """Read the connection anew at the next call: somebody may have renewed a secret."""
        with self._lock:
            self.close()
            self._settings = None

    def forget_token(self) -> None:
        """Get a new token with the next request."""
        with self._lock:
            self._token_source().forget()

    def close(self) -> None:
        """Release the connections to Globus; the next call opens new ones."""
        with self._lock:
            if self._transfer is not None:
                self._transfer.transport.close()
            self._transfer = self._tokens = None

    def for_emergency(self) -> GlobusHook:
        """A hook with the same settings that shares no lock with this one and does not repeat itself.

        For signal handlers: the interrupted code may be holding this hook's lock.
        """
        return GlobusHook(
            self.globus_conn_id, attempts=1, http_timeout=5.0, settings=self.settings, own_tokens=True
        )

    def test_connection(self) -> tuple[bool, str]:
        """Answer the connection form's Test button."""
        message = ""
        try:
            self.forget_token()
            self.ping()
            message = f"Globus accepts {self.settings.identity}, and Transfer answers."
            for entry in self.settings.collections.split():
                collection, _, folder = entry.partition(":")
                self.look_into(collection, folder or "/")
                message += f" It may look into {entry}."
        except FacilityError as error:
            return False, f"{message} {error}".lstrip()
        return True, message

    def ping(self) -> None:
        """Make sure that Transfer answers; after `forget_token` also that Globus Auth accepts the client."""
        self._call("listing tasks", lambda transfer: transfer.task_list(limit=1))

    def task_url(self, task_id: str) -> str:
        """Address of a task's page in Globus's web app."""
        return f"{self.settings.web_url}activity/{check_task_id(task_id)}"

    # Tasks

    def new_submission_id(self) -> str:
        """Ask for an id under which exactly one task can be submitted."""
        reply = self._call("asking for a submission id", lambda transfer: transfer.get_submission_id())
        return read_field(reply, "value", "asking for a submission id")

    def submit(self, request: Request, submission_id: str) -> str:
        """Submit a transfer or delete; returns the task's id. May be repeated with the same submission id.

        :raises SubmissionConflictError: when a living task moves the same paths.
        :raises SubmissionIdError: when Globus does not accept the submission id.
        """
        what = f"submitting the {request.kind.lower()} of {request}"

        def post(transfer: globus_sdk.TransferClient) -> Any:
            document = request.document
            document["submission_id"] = submission_id
            if isinstance(document, globus_sdk.DeleteData):
                return transfer.submit_delete(document)
            return transfer.submit_transfer(document)

        reply = self._call(what, post, remote_id=f"submission {submission_id}", changes=True)
        return check_task_id(read_field(reply, "task_id", what))

    def get_task(self, task_id: str) -> TaskSnapshot:
        """Read one task."""
        task_id = check_task_id(task_id)
        reply = self._call("reading a task", lambda transfer: transfer.get_task(task_id), remote_id=task_id)
        return TaskSnapshot.from_document(reply)

    def get_tasks(self, task_ids: Iterable[str]) -> dict[str, TaskSnapshot]:
        """Read many tasks with one request per hundred. Unknown ones are left out."""
        ids = sorted({check_task_id(task_id) for task_id in task_ids})
        found: dict[str, TaskSnapshot] = {}
        for start in range(0, len(ids), self.ids_per_request):
            some = ids[start : start + self.ids_per_request]
            found |= {task.task_id: task for task in self._tasks({"task_id": some})}
        return found

    def find_tasks(self, label: str, kind: str) -> list[TaskSnapshot]:
        """Our tasks of exactly that label, newest first."""
        found = self._tasks({"label": f"={label}"}, kinds=[kind], limit=100)
        return [task for task in found if task.label == label]

    def living_tasks(self) -> list[TaskSnapshot]:
        """All our tasks that have not ended, at most a thousand."""
        return [task for task in self._tasks({"status": ["ACTIVE", "INACTIVE"]}) if not task.is_final]

    def _tasks(
        self,
        clauses: Mapping[str, str | list[str]],
        *,
        kinds: Iterable[str] = ("TRANSFER", "DELETE"),
        limit: int = 1000,
    ) -> list[TaskSnapshot]:
        # Without a type clause Globus lists transfers only.
        wanted = cast("dict[str, str | list[str]]", {**clauses, "type": list(kinds)})
        reply = self._call(
            "listing tasks",
            lambda transfer: transfer.task_list(filter=wanted, limit=limit, orderby="request_time DESC"),
        )
        return [TaskSnapshot.from_document(document) for document in read_documents(reply, "listing tasks")]

    def cancel(self, task_id: str, *, within: float = 15.0) -> TaskSnapshot:
        """Cancel a task, wait until it has ended, and return what became of it: it may have succeeded.

        :param within: seconds to wait; a task that takes longer is returned as it is.
        """
        task_id = check_task_id(task_id)
        self._call(
            "cancelling a task",
            lambda transfer: transfer.cancel_task(task_id),
            remote_id=task_id,
            changes=True,
        )
        reading = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda task: not task.is_final),
            stop=tenacity.stop_after_delay(within),
            wait=tenacity.wait_fixed(min(self.first_pause, 1.0)),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return reading(self.get_task, task_id)

    def trouble_report(self, task_id: str) -> str:
        """Globus's report about a task in trouble: the newest error event and why it is paused, if it is."""
        task_id = check_task_id(task_id)
        reply = self._call(
            "reading a task's events",
            lambda transfer: transfer.task_event_list(
                task_id, limit=_EVENTS, query_params={"filter": "is_error:1"}
            ),
            remote_id=task_id,
        )
        events = read_documents(reply, "reading a task's events")
        # that it has ended is known; what kept it from its work is in the event before
        events.sort(key=lambda event: isinstance(event, Mapping) and event.get("code") in ENDINGS)
        pause = self._call(
            "reading why a task is paused",
            lambda transfer: transfer.task_pause_info(task_id),
            remote_id=task_id,
        )
        return "\n".join([*map(describe_event, events[:1]), *pause_reasons(pause)])[:_REPORT_LIMIT]

    # Files

    def stat(self, collection: str, path: str) -> FileEntry:
        """Describe a file or folder.

        :raises NotFoundError: when the collection has no such path.
        """
        collection, path = check_collection(collection, "collection"), check_path(path, "path")
        reply = self._call(
            f"looking at {path}",
            lambda transfer: transfer.operation_stat(collection, path),
            remote_id=f"{collection}:{path}",
        )
        return FileEntry.from_document(reply)

    def list_folder(
        self,
        collection: str,
        path: str,
        *,
        name_filter: str | None = None,
        page_size: int = 10_000,
    ) -> Iterator[FileEntry]:
        """Yield a folder's entries in order of name, page by page; hidden ones are left out.

        :param name_filter: a name or pattern in Globus's form, such as `~NS_*.cxi`.
        """
        collection, path = check_collection(collection, "collection"), check_path(path, "path")
        wanted = globus_sdk.MISSING if name_filter is None else f"name:{name_filter}"
        offset = 0
        while True:
            ls = partial(
                globus_sdk.TransferClient.operation_ls,
                endpoint_id=collection,
                path=path,
                show_hidden=False,
                orderby="name",
                limit=page_size,
                offset=offset,
                filter=wanted,
            )
            what = f"listing {path}"
            page = read_documents(self._call(what, ls, remote_id=f"{collection}:{path}"), what)
            yield from map(FileEntry.from_document, page)
            if len(page) < page_size:
                return
            offset += len(page)

    def look_into(self, collection: str, path: str = "/") -> None:
        """Make sure that a folder can be listed."""
        next(self.list_folder(collection, path, page_size=1), None)

    def make_folder(self, collection: str, path: str) -> None:
        """Make a folder and the folders above it; those that exist already are fine."""
        collection, path = check_collection(collection, "collection"), check_path(path, "path")
        parts = [part for part in path.split("/") if part and part != "~"]
        root = "/~/" if path.startswith("/~/") else "/"
        for depth in range(1, len(parts) + 1):
            folder = root + "/".join(parts[:depth])
            try:
                self._call(
                    f"making folder {folder}",
                    partial(globus_sdk.TransferClient.operation_mkdir, endpoint_id=collection, path=folder),
                    remote_id=f"{collection}:{folder}",
                    changes=True,
                )
            except ExistsError:
                pass
            except UserError:
                # A folder above may be one that we may not make (a root without write permission): what
                # counts is whether the last can be made.
                if depth == len(parts):
                    raise

    # Calling

    def _call(
        self,
        what: str,
        act: Callable[[globus_sdk.TransferClient], T],
        *,
        remote_id: str | None = None,
        changes: bool = False,
    ) -> Any:
        """Call Globus; returns the reply's JSON. Repeats while Globus is silent or busy."""
        call = Call(what, remote_id, self.settings, changes)
        resend = resending(self.attempts, first_pause=self.first_pause, longest_pause=_MAX_PAUSE)
        try:
            return resend(self._send, act, call)
        except PausedError as error:
            error.add_details(*self._pause_rules((remote_id or "").partition(":")[0]))
            raise

    def _pause_rules(self, collection: str) -> list[str]:
        """Who has paused a collection's operations, and why."""
        try:
            check_collection(collection, "collection")
            reply = self._send(
                lambda transfer: transfer.my_effective_pause_rule_list(collection),
                Call("reading pause rules", collection, self.settings),
            )
        except FacilityError as error:
            return [f"(Who has paused it could not be read: {error.what})"]
        return describe_pause_rules(reply.get("DATA"))

    def _send(self, act: Callable[[globus_sdk.TransferClient], T], call: Call) -> Any:
        """Send once; again when it was refused for want of a fresh token or of a collection's consent."""
        refusal: globus_sdk.TransferAPIError | None = None
        token: Token | None = None
        while True:
            try:
                with self._lock:
                    token = self._token_source().get()
                    reply = act(self._client(token))
                return read_json(reply, call)
            except globus_sdk.TransferAPIError as error:
                if not self._cure(error, refusal, token):
                    raise explain(error, call) from error
                refusal = error
            except globus_sdk.AuthAPIError as error:
                # A scope that a consent asks for but Auth does not give: the refusal is clearer.
                asked_for_scope = refusal is not None and bool(self._scopes)
                with self._lock:
                    self._scopes.clear()
                    self.close()
                raise explain(refusal if refusal and asked_for_scope else error, call) from error
            except (globus_sdk.GlobusError, TokenReplyError) as error:
                raise explain(error, call) from error

    def _cure(
        self,
        error: globus_sdk.TransferAPIError,
        earlier: globus_sdk.TransferAPIError | None,
        token: Token | None,
    ) -> bool:
        """Prepare for sending again what was not acted upon; returns whether that makes sense."""
        consent = error.info.consent_required
        with self._lock:
            if consent and consent.required_scopes:
                new = [scope for scope in consent.required_scopes if scope not in self._scopes]
                if not new and token is not None:  # asking for a token is what gives a consent
                    tokens = self._token_source()
                    tokens.forget(token.text)
                    return tokens.is_kept(token)
                self._scopes += new
                self.close()
                return bool(new)
            if error.http_status != 401 or earlier is not None or token is None:
                return False
            self._token_source().forget(token.text)
            return True

    def _client(self, token: Token) -> globus_sdk.TransferClient:
        if self._transfer is None:
            self._transfer = transfer_client(self.settings, self.http_timeout)
        self._transfer.authorizer = globus_sdk.AccessTokenAuthorizer(token.text)
        return self._transfer

    def _token_source(self) -> Tokens:
        if self._tokens is None:
            settings, scopes, timeout = self.settings, tuple(self._scopes), self.http_timeout
            make = Tokens if self._own_tokens else shared_tokens
            self._tokens = make(
                credentials_of(settings, scopes), lambda: ask_token(settings, scopes, timeout)
            )
        return self._tokens
