"""Who may ask. With tokens: who holds one. Without: only what runs on this machine and speaks to it by a local name."""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from forge.serving.http.faults import Refusal


class Tokens:
    """Bearer tokens, kept as digests. A token is compared with each in constant time, and no log or error shows it."""

    def __init__(self, tokens: Iterable[str]):
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, authorization: str | None) -> str | None:
        """A name for the token in the header `Authorization: Bearer …`, the same each time; None where it is none of ours."""
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        known = [hmac.compare_digest(digest, each) for each in self._digests]
        return f"token-{digest.hex()[:8]}" if any(known) and scheme.lower() == "bearer" else None


def unknown() -> Refusal:
    sentence = "this server asks for a token: send the header `Authorization: Bearer TOKEN`"
    return Refusal(401, sentence, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def require_local_name(host: str | None) -> None:
    """A page of another site that gave this machine's address to its own name could else ask, through the browser that shows it."""
    name = (host or "").lower()
    name = name[: name.rfind("]") + 1] if name.startswith("[") else name.partition(":")[0]
    if not is_local(name):
        raise Refusal(403, "without a token this server answers to localhost and 127.0.0.1 only: use that name, or start it with a token")


def is_local(host: str) -> bool:
    """Whether what listens at `host` is out of other machines' reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, and 127.example.org may be anywhere
        return host == "localhost"
