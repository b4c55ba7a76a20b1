"""A relay to a local port whose round trip takes as long as one to another continent."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def relay(port: int, round_trip: float) -> Iterator[int]:
    """Pass connections on to `port` until the block ends, each byte half a round trip late (s); yield the relay's port.

    A connection is made a round trip late as well.
    """
    loop = asyncio.new_event_loop()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Write what comes in order, each piece `round_trip` / 2 after it came."""
        last: asyncio.Task[None] | None = None

        async def later(data: bytes, before: asyncio.Task[None] | None) -> None:
            await asyncio.sleep(round_trip / 2)
            if before:
                await before
            with suppress(OSError):
                if data:
                    target.write(data)
                    await target.drain()
                else:
                    target.write_eof()

        with suppress(OSError):
            while data := await source.read(65536):
                last = asyncio.ensure_future(later(data, last))
        await later(b"", last)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, back), carry(there, writer))
        for each in (back, writer):
            each.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
