"""An agent that joins and then only asks what to do, thousands of times: a run made of small calls, as a process of its own.

python -m tests.support.polling_agent HOST:PORT SITE LOG CALLS BASE_MODEL_SHA256 [CA CERTIFICATE KEY]
"""

import asyncio
import sys
from pathlib import Path

from shared import logs
from shared.tls import TlsFiles
from site_agent.client import FederationClient
from tests.support.ledgers import throwaway


async def ask(address: str, site: str, calls: int, base_model_sha256: str, tls: TlsFiles | None) -> None:
    """Join, then poll; every fifth time nothing differs from what the site has, and the aggregator holds the call a while."""
    client = FederationClient(
        address, tls, f"{site:->32}", throwaway(), plain_site="" if tls else site, give_up_after_s=30.0
    )
    await client.join(federation="", base_model_sha256=base_model_sha256, training_patients=10, software_version="1.0")
    for number in range(calls):
        following, wait_s = ("TRAIN", 0.001) if number % 5 == 0 else ("UNSPECIFIED", 0.0)
        await client.await_round(round_number=1, following=following, version=0, wait_s=wait_s)
    await client.close()


def main(address: str, site: str, log: str, calls: str, base_model_sha256: str, *tls: str) -> None:
    """Run with the words of the command line."""
    logs.configure(Path(log))
    files = TlsFiles(*map(Path, tls)) if tls else None
    asyncio.run(ask(address, site, int(calls), base_model_sha256, files))


if __name__ == "__main__":
    main(*sys.argv[1:])
