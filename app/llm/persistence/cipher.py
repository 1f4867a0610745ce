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

from app.llm.persistence.codec import AES_GCM, AES_GCM_ZSTD, PLAIN, RAW, ZSTD, Unreadable, to_json

NONCE_BYTES = 12
"""96 random bits, in front of the ciphertext; good for 2**32 payloads of one key (NIST SP 800-38D, 8.3)."""
_SEALED = {RAW: AES_GCM, ZSTD: AES_GCM_ZSTD}
_OPENED = {sealed: inner for inner, sealed in _SEALED.items()}
"""How what is inside a ciphertext was encoded, by how the whole is."""
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
        """Return nonce and ciphertext, bound to workspace, address and codec; what is sealed was compressed before."""
        inner, data = PLAIN.encode(data, workspace_id=workspace_id, address=address)
        codec, nonce = _SEALED[inner], os.urandom(NONCE_BYTES)
        return codec, nonce + self._ciphers[0].encrypt(nonce, data, _bound_to(workspace_id, address, codec))

    def decode(self, codec: int, data: bytes, *, workspace_id: str, address: str) -> bytes:
        """Return the bytes of a payload.

        Raises:
            Unreadable: No key fits, or the payload is damaged or of another place.
        """
        if codec not in _OPENED:
            return PLAIN.decode(codec, data, workspace_id=workspace_id, address=address)
        opened = self._open(data, _bound_to(workspace_id, address, codec))
        return PLAIN.decode(_OPENED[codec], opened, workspace_id=workspace_id, address=address)

    def _open(self, data: bytes, bound_to: bytes) -> bytes:
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], bound_to)
            except (InvalidTag, ValueError):  # the latter: too short to hold a nonce
                continue
        raise Unreadable("no key of LLM_PAYLOAD_KEY opens it")


def _bound_to(workspace_id: str, address: str, codec: int) -> bytes:
    return to_json([workspace_id, address, codec]).encode()
