"""A relay as a program: it delays whatever passes. The arguments are host to listen at, target, and seconds one way; it prints
where it listens and ends when its standard input does."""

import asyncio
import sys

from experiments.relay import FaultPlan, Relay


async def main(host: str, target: str, latency_s: float) -> None:
    """Relay until nobody holds the other end of standard input."""
    async with Relay([target], FaultPlan(latency_s=latency_s), host=host) as relay:
        print(f"listening on {relay.address}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
