"""`python healthy.py PORT`: status 0 if the aggregator in this container says it can do its job, else 1 with the reason.

/healthz is open to everybody. The certificate is made for the name that sites dial, not for 127.0.0.1, and nothing secret is
asked or told here: it is not checked.
"""

import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def main(port: str) -> int:
    """Ask once."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{int(port)}/healthz", timeout=TIMEOUT_S, context=unchecked):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
