"""One version on its way in: what has arrived of it, and what it stands for."""

import numpy as np
from med_duallora.v1 import federation_pb2 as pb

from shared import chunks, forms
from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import InvalidAdapter


class Download:
    """Takes the parts of a FetchAdapter stream, over as many attempts as it needs.

    `held`: the copy the site has, which the download may build on. `any_form`: whether the aggregator may choose how to send it;
    else it sends all of it, plainly.
    """

    def __init__(self, contract: Contract, held: Adapter | None, *, any_form: bool = True) -> None:
        self._contract, self._held, self.any_form = contract, held, any_form
        self._info: pb.AdapterInfo | None = None
        self._data = bytearray()

    @property
    def most_bytes(self) -> int:
        """The most that can come."""
        return self._contract.manifest.layout.size

    @property
    def held_digest(self) -> str:
        """Digest of the copy the site has; empty if it has none."""
        return self._held.digest if self._held else ""

    @property
    def received(self) -> int:
        """Bytes that have arrived: where the next attempt goes on."""
        return len(self._data)

    @property
    def form(self) -> str:
        """How the version is sent."""
        return pb.Form.Name(self._info.form).removeprefix("FORM_") if self._info else ""

    def begin(self, info: pb.AdapterInfo) -> bool:
        """Note what is being sent. Returns False if the bytes that arrived before are not of it.

        Raises InvalidAdapter for more bytes than a version has, or for a form or a base that was not asked for.
        """
        most = self.most_bytes
        plain = info.form in (pb.FORM_UNSPECIFIED, pb.FORM_PLAIN)
        if not 0 < info.size <= most or (plain and info.size != most):
            raise InvalidAdapter(f"the aggregator offers {info.size} bytes, expected {most}")
        if info.form not in pb.Form.values() or not (plain or self.any_form):
            raise InvalidAdapter(
                f"the aggregator sends form {info.form}, which was not asked for; upgrade the older side"
            )
        if info.base_digest not in ("", self.held_digest):
            raise InvalidAdapter(
                f"the download builds on {info.base_digest[:12]}, this site has {self.held_digest[:12]}"
            )
        before, self._info = self._info, info
        return before is None or not self._data or before.payload_digest == info.payload_digest

    def add(self, chunk: pb.Chunk) -> None:
        """Take the next bytes. Raises BadOffset or UpdateTooLarge if they are not the next, or too many."""
        if self._info is None:
            raise InvalidAdapter("the aggregator sends bytes without saying what it sends")
        chunks.check(chunk, len(self._data), self._info.size)
        self._data += chunk.data

    def adapter(self, version: int, digest: str) -> Adapter:
        """Return the version; the copy the site has if nothing was sent.

        Raises InvalidAdapter if the bytes are none, or those of a version with another digest.
        """
        found = self._adapter(version)
        if found.digest != digest:
            raise InvalidAdapter(
                f"version {version} arrived with digest {found.digest[:12]}, announced was {digest[:12]}"
            )
        return found

    def _adapter(self, version: int) -> Adapter:
        info = self._info
        if info is None:
            if self._held is None:
                raise InvalidAdapter(
                    f"the aggregator answered the download of version {version} without saying what it sends"
                )
            return self._held
        if len(self._data) != info.size:
            raise InvalidAdapter(f"the download of version {version} ended at byte {len(self._data)} of {info.size}")
        manifest, base = self._contract.manifest, self._held if info.base_digest else None
        if info.form == pb.FORM_CHANGES:
            if base is None:
                raise InvalidAdapter(f"version {version} is sent as changes of nothing")
            return Adapter(manifest, info.version, info.parent_digest, self._changed(base, info))
        payload = bytes(self._data)
        if info.form == pb.FORM_PACKED:
            payload = forms.unpack(payload, base.payload if base else None, manifest.layout.size)
        return Adapter.from_payload(manifest, info.version, info.parent_digest, payload)

    def _changed(self, base: Adapter, info: pb.AdapterInfo) -> dict[str, np.ndarray]:
        if sum(change.size for change in info.changes) != info.size:
            raise InvalidAdapter(f"the changes do not add up to the {info.size} bytes of the download")
        if len(info.changes) > self._contract.policy.rounds:
            raise InvalidAdapter(f"{len(info.changes)} changes are more than there are rounds")
        tensors, start = dict(base.tensors), 0
        for change in info.changes:
            layout = self._contract.recipe.change_layout(self._contract.manifest, change.round)
            tensors = forms.changed(tensors, layout, bytes(self._data[start : start + change.size]))
            start += change.size
        return tensors
