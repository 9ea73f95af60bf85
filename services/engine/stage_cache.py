"""The KV cache of a stage: of the formation that has it, of the last one that had it, or made ahead
of the next one, so that blocks lie there before their generations come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.engine.backend import StageBackend
from services.engine.compute import Compute
from services.engine.core.contents import Contents
from services.engine.core.incoming import NamedBlock


class StageCache:
    """Of one stage, size and class of arithmetic."""

    def __init__(
        self, backend: StageBackend, compute: Compute, kv_blocks: int, numerics_class: str
    ) -> None:
        """`numerics_class` is that of the pipeline: what the stages before this one computed is in
        what its blocks hold."""
        self.kv_blocks = kv_blocks
        self.numerics_class = numerics_class
        self.contents = Contents()
        self.taken = False
        """A formation has it."""
        self._backend = backend
        self._compute = compute
        self._made = False
        self._laying = asyncio.Lock()

    def begin(self) -> None:
        """Makes it; one that is there already has its slots free and its blocks as they are. In the
        compute thread. Raises what `StageBackend.begin` does."""
        if self._made:
            self._backend.begin_again(self.kv_blocks)
        else:
            self._backend.begin(self.kv_blocks)
            self._made = True

    def end(self) -> None:
        """It goes. In the compute thread."""
        self._made = False
        self._backend.end()

    async def lay(self, blocks: Sequence[NamedBlock], data: Sequence[bytes | memoryview]) -> bool:
        """Has blocks hold this while no formation has it; False: one does by now. Raises what
        `StageBackend.begin` and `import_blocks` do."""
        places = [block for _, block in blocks]

        def run() -> bool:
            if self.taken:
                return False
            if not self._made:
                self.begin()
            self._backend.import_blocks(places, data)
            return True

        async with self._laying:  # of two for one block the later one counts
            if self.taken:
                return False
            self.contents.written(places)
            laid = await self._compute.run(run)
            if not laid or self.taken:  # who has it may have written to them since
                return False
            self.contents.note(blocks)
            return True
