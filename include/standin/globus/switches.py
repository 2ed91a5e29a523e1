"""Serves what tests may change on Globus: POST /control/globus/{verb}.

Switches are kept in the database: a server that is started again carries on with them.
"""

from __future__ import annotations

import uuid
from typing import Any, get_args

from standin.globus.auth import Auth
from standin.globus.collections import (
    PAUSABLE,
    BadPathError,
    Collection,
    Collections,
    Condition,
    Refusal,
    normalize,
)
from standin.globus.engine import Engine
from standin.globus.model import DAY, Task
from standin.globus.scopes import data_access
from standin.globus.store import GlobusStore
from standin.service import Control, ControlError

_REQUIREMENTS: dict[str, type] = {
    "session_message": str,
    "session_required_identities": list,
    "session_required_single_domain": list,
    "session_required_policies": list,
    "session_required_mfa": bool,
}


class Switches:
    """The verbs, each a JSON object in and one out."""

    def __init__(self, auth: Auth, collections: Collections, engine: Engine, store: GlobusStore) -> None:
        self._auth = auth
        self._collections = collections
        self._engine = engine
        self._store = store

    def restore(self) -> None:
        """Set the switches as an earlier server left them."""
        kept = self._store.switches()
        for collection in self._collections.all:
            if collection.name in kept:
                collection.set_switches(kept[collection.name])
        if "bandwidth" in kept:
            self._engine.throttle.set_rate(kept["bandwidth"])
        self._engine.pending_limit = kept.get("pending_limit", self._engine.pending_limit)
        self._engine.task_seconds = kept.get("task_seconds", DAY)
        self._auth.token_seconds = kept.get("token_seconds", self._auth.token_seconds)
        self._auth.client_enabled = kept.get("client_enabled", True)

    def _keep(self, collection: Collection) -> None:
        self._store.set_switch(collection.name, collection.switches())

    def controls(self) -> dict[str, Control]:
        """The verbs by name."""
        return {
            "transfers": self.transfers,
            "pause": self.pause,
            "suspend": self.suspend,
            "resume": self.resume,
            "retry": self.retry,
            "cancel": self.cancel,
            "endpoint": self.endpoint,
            "login": self.login,
            "pause_rule": self.pause_rule,
            "quota": self.quota,
            "deny": self.deny,
            "allow": self.allow,
            "consent": self.consent,
            "bandwidth": self.bandwidth,
            "pending_limit": self.pending_limit,
            "task_seconds": self.task_seconds,
            "corrupt": self.corrupt,
            "revoke_tokens": self.revoke_tokens,
            "expire_tokens": self.expire_tokens,
            "token_seconds": self.token_seconds,
            "client": self.client,
        }

    async def transfers(self, _body: dict[str, Any]) -> dict[str, Any]:
        """The accounting: every task ever, with what it moved."""
        return {"transfers": [task.to_book() for task in self._engine.tasks.values()]}

    async def pause(self, body: dict[str, Any]) -> dict[str, Any]:
        """{task_id, message?}: pause a task as an endpoint's manager would."""
        task = self._unfinished(body)
        await self._engine.pause(task, str(body.get("message", "paused by the endpoint's manager")))
        return task.to_book()

    async def suspend(self, body: dict[str, Any]) -> dict[str, Any]:
        """{task_id}: make a task INACTIVE."""
        task = self._unfinished(body)
        await self._engine.suspend(task)
        return task.to_book()

    async def resume(self, body: dict[str, Any]) -> dict[str, Any]:
        """{task_id}: let a paused or suspended task go on."""
        task = self._unfinished(body)
        self._engine.resume(task)
        return task.to_book()

    async def retry(self, body: dict[str, Any]) -> dict[str, Any]:
        """{task_id}: make the next attempt now."""
        task = self._unfinished(body)
        self._engine.retry_now(task)
        return task.to_book()

    async def cancel(self, body: dict[str, Any]) -> dict[str, Any]:
        """{task_id, message?}: cancel a task as an endpoint's manager would."""
        task = self._task(body)
        code = await self._engine.cancel(task, "admin", body.get("message"))
        return {"code": code, **task.to_book()}

    async def endpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, condition, refuse_submissions?}: take an endpoint down or up.

        Conditions are up, connect_failed, gc_not_connected, endpoint_error and deleted.
        """
        collection = self._collection(body)
        condition = body.get("condition", "up")
        if condition not in get_args(Condition):
            raise ControlError(f"condition must be one of {', '.join(get_args(Condition))}.")
        collection.condition = condition
        collection.refuse_submissions = bool(body.get("refuse_submissions", False))
        self._keep(collection)
        return {"collection": collection.name, "condition": condition}

    async def login(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, refusal, requires?}: whether the collection lets the client in.

        Refusals are no_account, session (502, with what the session `requires`), policy (403, the same) and
        null. `requires` holds session_message, session_required_identities, _single_domain, _policies, _mfa.
        """
        collection = self._collection(body)
        refusal, requires = body.get("refusal"), body.get("requires") or {}
        if refusal not in (None, *get_args(Refusal)):
            raise ControlError(f"refusal must be null or one of {', '.join(get_args(Refusal))}.")
        if not isinstance(requires, dict) or bool(requires) != (refusal in ("session", "policy")):
            raise ControlError("requires must be an object for session and policy, and left out otherwise.")
        for key, value in requires.items():
            if not isinstance(value, _REQUIREMENTS.get(key, ())):
                raise ControlError(f"requires has {key} {value!r}; known are {', '.join(_REQUIREMENTS)}.")
        collection.refusal, collection.requires = refusal, requires
        self._keep(collection)
        return {"collection": collection.name, "refusal": refusal, "requires": requires}

    async def pause_rule(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, message, operations?}: pause operations there as its manager would; null ends it."""
        collection = self._collection(body)
        message, operations = body.get("message"), body.get("operations", list(PAUSABLE))
        if not (message is None or (isinstance(message, str) and message)):
            raise ControlError("message must be a text that is not empty, or null.")
        if not isinstance(operations, list) or not set(operations) <= set(PAUSABLE):
            raise ControlError(f"operations must be a list of {', '.join(PAUSABLE)}.")
        collection.pause_rule = message and {
            "DATA_TYPE": "pause_rule_limited",
            "id": str(uuid.uuid4()),
            "message": message,
            "start_time": None,
            "endpoint_id": collection.collection_id,
            "endpoint_display_name": collection.display_name,
            "identity_id": None,
            **{f"pause_{operation}": operation in operations for operation in PAUSABLE},
        }
        self._keep(collection)
        await self._engine.apply_pause_rules()
        return {"collection": collection.name, "rule": collection.pause_rule}

    async def quota(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, bytes_left}: what may still be written there; null for no limit."""
        collection = self._collection(body)
        left = body.get("bytes_left")
        if left is not None and (not isinstance(left, int | float) or left < 0):
            raise ControlError("bytes_left must be a number from 0 on, or null.")
        collection.quota_left = left
        self._keep(collection)
        return {"collection": collection.name, "bytes_left": left}

    async def deny(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, path, rights?}: deny reading and writing (or one of them) below a path."""
        collection = self._collection(body)
        rights = set(body.get("rights", ["read", "write"]))
        if not rights <= {"read", "write"}:
            raise ControlError("rights must be a list of read, write.")
        try:
            path = normalize(body.get("path", "/"))
        except BadPathError as error:
            raise ControlError(f"{error}.") from error
        collection.denied[path] = sorted(rights.union(collection.denied.get(path, [])))
        self._keep(collection)
        return {"collection": collection.name, "denied": list(collection.denied)}

    async def allow(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection}: take all denials back."""
        collection = self._collection(body)
        collection.denied.clear()
        self._keep(collection)
        return {"collection": collection.name, "denied": []}

    async def consent(self, body: dict[str, Any]) -> dict[str, Any]:
        """{collection, required}: make it a mapped collection that needs the data_access consent, anew."""
        collection = self._collection(body)
        collection.needs_consent = bool(body.get("required", True))
        self._store.drop_consents(data_access(collection.collection_id))
        self._keep(collection)
        return {"collection": collection.name, "required": collection.needs_consent}

    async def bandwidth(self, body: dict[str, Any]) -> dict[str, Any]:
        """{bytes_per_second}: of all transfers together; null for no limit."""
        rate = body.get("bytes_per_second")
        if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool) or rate <= 0):
            raise ControlError("bytes_per_second must be a number above 0, or null.")
        self._engine.throttle.set_rate(rate)
        self._store.set_switch("bandwidth", rate)
        return {"bytes_per_second": rate}

    async def pending_limit(self, body: dict[str, Any]) -> dict[str, Any]:
        """{limit}: how many unfinished tasks a user may have."""
        limit = body.get("limit")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise ControlError("limit must be a whole number from 0 on.")
        self._engine.pending_limit = limit
        self._store.set_switch("pending_limit", limit)
        return {"limit": limit}

    async def task_seconds(self, body: dict[str, Any]) -> dict[str, Any]:
        """{seconds}: how long tasks live that are accepted from now on and make no progress; null: a day."""
        seconds = body.get("seconds") or DAY
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
            raise ControlError("seconds must be a number above 0, or null.")
        self._engine.task_seconds = seconds
        self._store.set_switch("task_seconds", seconds)
        return {"seconds": seconds}

    async def corrupt(self, body: dict[str, Any]) -> dict[str, Any]:
        """{times}: damage the next so many copies before they are verified."""
        times = body.get("times", 1)
        if not isinstance(times, int) or times < 0:
            raise ControlError("times must be a number from 0 on.")
        self._engine.spoil_left = times
        return {"times": times}

    async def revoke_tokens(self, _body: dict[str, Any]) -> dict[str, Any]:
        """Revoke all tokens."""
        return {"revoked": self._store.revoke()}

    async def expire_tokens(self, _body: dict[str, Any]) -> dict[str, Any]:
        """Let all tokens expire now."""
        return {"expired": self._store.expire_tokens()}

    async def token_seconds(self, body: dict[str, Any]) -> dict[str, Any]:
        """{seconds}: how long tokens live that are given out from now on."""
        seconds = body.get("seconds")
        if not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 1:
            raise ControlError("seconds must be a whole number from 1 on.")
        self._auth.token_seconds = seconds
        self._store.set_switch("token_seconds", seconds)
        return {"seconds": seconds}

    async def client(self, body: dict[str, Any]) -> dict[str, Any]:
        """{enabled}: whether the client's secret is accepted, as if it had been deleted or restored."""
        self._auth.client_enabled = bool(body.get("enabled", True))
        self._store.set_switch("client_enabled", self._auth.client_enabled)
        return {"enabled": self._auth.client_enabled}

    def _collection(self, body: dict[str, Any]) -> Collection:
        collection = self._collections.named(body.get("collection"))
        if collection is None:
            names = ", ".join(c.name for c in self._collections.all)
            raise ControlError(f"collection is {body.get('collection')!r}; it must be one of {names}.")
        return collection

    def _task(self, body: dict[str, Any]) -> Task:
        task = self._engine.tasks.get(str(body.get("task_id")))
        if task is None:
            raise ControlError(f"There is no task {body.get('task_id')!r}.")
        return task

    def _unfinished(self, body: dict[str, Any]) -> Task:
        task = self._task(body)
        if task.ended:
            raise ControlError(f"Task {task.task_id} has ended ({task.status}).")
        return task
