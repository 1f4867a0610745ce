"""Payloads as AES-256-GCM, so that a stolen database file, dump or spool holds no prompt and no answer.

The only file that needs the extra `crypto`; the bootstrap imports it when LLM_PAYLOAD_KEY is set.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.llm.persistence.codec import AES_GCM, PLAIN, Unreadable, to_json

NONCE_BYTES = 12
"""96 random bits, in front of the ciphertext; good for 2**32 payloads of one key (NIST SP 800-38D, 8.3)."""
_ADDRESS_INFO = b"signalbox payload address v1"


class Cipher:
    """A `Codec` that encrypts with the first key and reads with all of them; plain payloads stay readable.

    An address is an HMAC over workspace and bytes: equal texts of one workspace are stored once, and nobody without
    the key can test a guess or compare workspaces.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = tuple(AESGCM(key) for key in keys)
        self._address_key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_ADDRESS_INFO).derive(keys[0])

    def address(self, data: bytes, *, workspace_id: str) -> str:
        """Return the address of a payload; it changes with the first key."""
        mac = hmac.new(self._address_key, to_json([workspace_id]).encode(), hashlib.sha256)
        mac.update(data)
        return mac.hexdigest()

    def encode(self, data: bytes, *, workspace_id: str, address: str) -> tuple[int, bytes]:
        """Return nonce and ciphertext, bound to workspace, address and codec."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, data, _bound_to(workspace_id, address))
        return AES_GCM, nonce + sealed

    def decode(self, codec: int, data: bytes, *, workspace_id: str, address: str) -> bytes:
        """Return the bytes of a payload.

        Raises:
            Unreadable: No key fits, or the payload is damaged or of another place.
        """
        if codec != AES_GCM:
            return PLAIN.decode(codec, data, workspace_id=workspace_id, address=address)
        bound_to = _bound_to(workspace_id, address)
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):  # the latter: too short to hold a nonce
                continue
        raise Unreadable("no key of LLM_PAYLOAD_KEY opens it")


def _bound_to(workspace_id: str, address: str) -> bytes:
    return to_json([workspace_id, address, AES_GCM]).encode()
