"""Sends HTTP requests to the Superfacility API: a token from sfapi_client, requests by httpx.

sfapi_client 0.6.0 gets the token, and nothing else: each of its verbs, POST too, is sent again on a
timeout or a 502, so that one submit can become two jobs; its job monitor hangs for ever after one
failed fetch; its check for status "ERROR" is never true.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import httpx

from facilities.errors import FacilityError, LostReplyError, TransientError
from facilities.retries import resending
from facilities.superfacility.connection import (
    ClientKey,
    SuperfacilityConfig,
    ask_token,
    credentials_of,
)
from facilities.superfacility.errors import (
    expect_ok,
    failure_of_network,
    failure_of_status,
    read_object,
)
from facilities.tokens import Tokens, shared_tokens

_FIRST_WAIT = 0.5  # seconds before a GET is sent again; doubled each time
_LONGEST_WAIT = 10.0


class SfapiSession:
    """A connection to the API. May be shared by threads.

    :param attempts: how often a GET is sent at most, when the service does not answer.
    :param timeout: seconds to wait for a connection, and for each part of a reply.
    :param own_tokens: share no lock with other sessions of the process.
    """

    def __init__(
        self,
        config: SuperfacilityConfig,
        load_key: Callable[[], ClientKey],
        *,
        attempts: int = 4,
        timeout: float = 20.0,
        own_tokens: bool = False,
    ) -> None:
        self.config = config
        self.attempts = attempts
        self._load_key = load_key
        self._own_tokens = own_tokens
        self._http = httpx.Client(
            timeout=timeout, headers={"accept": "application/json"}, verify=_certificates()
        )

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def forget_token(self) -> None:
        """Get a new token with the next request."""
        self._tokens.forget()

    @property
    def account(self) -> Mapping[str, Any]:
        """Who the client acts for: `name` and `uid`; asked for once with each token."""
        token = self._tokens.get()
        if token.facts.get("name"):
            return token.facts
        what = "Looking up the user of the client"
        reply = expect_ok(self.get("account/", what), what, otherwise=TransientError)
        facts = {key: reply.get(key) for key in ("name", "uid")}
        self._tokens.add_facts(token, **facts)
        return facts

    @property
    def client_id(self) -> str:
        """The id of the API client; reads the key first."""
        return self._key.client_id

    def get(self, path: str, what: str, *, params: Any = None, public: bool = False) -> Any:
        """Read something; sent again a few times when the service does not answer.

        :param what: what is being done, for the error.
        :param public: needs no token.
        :raises TransientError: no answer, or none that can be read.
        """
        return self._repeat("GET", path, what, public=public, params=params)

    def delete(self, path: str, what: str) -> Any:
        """Remove something; sent again a few times, since removing twice does no harm.

        :raises TransientError: no answer, or none that can be read.
        """
        return self._repeat("DELETE", path, what)

    def _repeat(self, method: str, path: str, what: str, **content: Any) -> Any:
        resend = resending(self.attempts, first_pause=_FIRST_WAIT, longest_pause=_LONGEST_WAIT)

        def send() -> Any:
            return read_object(self._request(method, path, what, **content), what, sent=method != "GET")

        return resend(send)

    def send_once(self, method: str, path: str, what: str, **content: Any) -> Any:
        """Ask for an action; sent once. (Again only if the token was refused: then nothing was done.)

        :raises LostReplyError: the action may or may not have been taken.
        :raises TransientError: it was not taken; it may be later.
        """
        response = self._request(method, path, what, **content)
        return read_object(response, what, sent=True)

    def _request(
        self, method: str, path: str, what: str, *, public: bool = False, **content: Any
    ) -> httpx.Response:
        token = None if public else self._tokens.get().text
        response = self._exchange(method, path, what, token, content)
        if response.status_code in (401, 403) and token is not None:
            self._tokens.forget(token)
            response = self._exchange(method, path, what, self._tokens.get().text, content)
        if response.is_success:
            return response
        failure: FacilityError = self._failure(response, what)
        if method != "GET" and response.status_code >= 500:
            failure = LostReplyError(
                what, state=failure.state, next_step=failure.next_step, details=failure.details
            )
        raise failure

    def _exchange(
        self, method: str, path: str, what: str, token: str | None, content: Mapping[str, Any]
    ) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        try:
            return self._http.request(method, f"{self.config.api_url}/{path}", headers=headers, **content)
        except httpx.HTTPError as error:
            raise failure_of_network(error, what, sent=method != "GET") from error

    def _failure(self, response: httpx.Response, what: str) -> FacilityError:
        client_id = self._key.client_id if "_key" in self.__dict__ else ""
        return failure_of_status(response, what, client_id=client_id, conn_id=self.config.conn_id)

    @cached_property
    def _key(self) -> ClientKey:
        return self._load_key()

    @cached_property
    def _tokens(self) -> Tokens:
        key, config = self._key, self.config
        make = Tokens if self._own_tokens else shared_tokens
        return make(credentials_of(key, config), lambda: ask_token(key, config))


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates; read once in a process, since that takes a while."""
    return httpx.create_ssl_context()
