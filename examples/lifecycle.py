#!/usr/bin/env python3
"""The lifecycle of a key, from a backend in Python: creates, uses, lists, updates, rotates and revokes a key through Keyward's
management socket. Needs only the standard library.

    lifecycle.py SOCKET API ORGANIZATION

SOCKET is the path in [management] listen, API a URL behind Keyward that accepts any valid key, ORGANIZATION an organization id
of Scalekit. If secret_file is set, put the secret into MANAGEMENT_SECRET.
"""

import http.client
import json
import os
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid


class Problem(Exception):
    """An error response of Keyward. `code` is for programs, the text for people."""

    def __init__(self, status, body):
        super().__init__(f"{status} {body.get('code')}: {body.get('detail')}")
        self.status = status
        self.code = body.get("code")
        self.token_id = body.get("token_id")
        self.possible_token_ids = body.get("possible_token_ids", [])


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Keys:
    """The keys of one organization."""

    def __init__(self, path, organization, secret=None):
        self.path = path
        self.base = f"/v1/organizations/{urllib.parse.quote(organization, safe='')}/keys"
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def create(self, idempotency_key, **new):
        return self._ask("POST", "", new, {"Idempotency-Key": idempotency_key})

    def list(self, **query):
        """All live keys; fetches one page after another."""
        while True:
            page = self._ask("GET", "?" + urllib.parse.urlencode(query))
            yield from page["tokens"]
            if not page["next_page_token"]:
                return
            query["page_token"] = page["next_page_token"]

    def show(self, token_id):
        return self._ask("GET", f"/{token_id}")

    def update(self, token_id, **change):
        return self._ask("PATCH", f"/{token_id}", change)

    def rotate(self, token_id, idempotency_key, keep_old=False):
        name = {"Idempotency-Key": idempotency_key}
        return self._ask("POST", f"/{token_id}/rotate", {"keep_old": keep_old}, name)

    def revoke(self, token_id):
        self._ask("DELETE", f"/{token_id}")

    def _ask(self, method, path, body=None, headers=None):
        headers = {**self.headers, **(headers or {})}
        if body is not None:
            body = json.dumps(body)
            headers["Content-Type"] = "application/json"
        connection = Connection(self.path)
        try:
            connection.request(method, self.base + path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        answer = json.loads(content) if content else None
        if response.status >= 400:
            raise Problem(response.status, answer)
        return answer


def call(api, key):
    """The status with which the service responds to this key."""
    request = urllib.request.Request(api, headers={"Authorization": f"Bearer {key}"})
    # Connects directly, even if the environment names a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def expect(found, wanted, what):
    if found != wanted:
        sys.exit(f"{what}: {found!r} instead of {wanted!r}")
    print(what)


def main(path, api, organization):
    keys = Keys(path, organization, os.environ.get("MANAGEMENT_SECRET"))

    # One Idempotency-Key for each key to be created: keep it until the response is there, and send it again with a retry.
    wanted = str(uuid.uuid4())
    new = {"user_id": "usr_python", "custom_claims": {"team": "python"}, "description": "made by lifecycle.py"}
    made = keys.create(wanted, **new)
    key, token_id = made["token"], made["token_id"]
    expect(made["token_info"]["custom_claims"], {"team": "python"}, "created")
    try:
        keys.create(wanted, **new)
        sys.exit("created twice")
    except Problem as problem:
        expect((problem.status, problem.code, problem.token_id), (409, "already_created", token_id), "not created twice")

    expect(call(api, key), 200, "good for the service")
    expect(token_id in [token["token_id"] for token in keys.list(user_id="usr_python", page_size=1)], True, "listed")
    shown = keys.show(token_id)
    usage = shown.pop("usage")
    expect((shown, usage["last_used"] is not None), (made["token_info"], True), "shown")
    changed = keys.update(token_id, custom_claims={"team": None, "environment": "test"})
    expect(changed["custom_claims"], {"environment": "test"}, "changed")

    rotated = keys.rotate(token_id, str(uuid.uuid4()))
    expect(rotated["replaced_token_revoked"], True, "rotated")
    expect(call(api, key), 401, "the old key is refused")
    expect(call(api, rotated["token"]), 200, "the new key is good")

    keys.revoke(rotated["token_id"])
    keys.revoke(rotated["token_id"])  # Revoking again is not an error, so a lost response can be retried.
    print("revoked")
    expect(call(api, rotated["token"]), 401, "refused on the very next request")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (Problem, OSError, http.client.HTTPException) as error:
        sys.exit(str(error))
