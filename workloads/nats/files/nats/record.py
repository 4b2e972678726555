# SPDX-License-Identifier: MIT
"""Fill the server once it is up, and note what must still be true afterwards."""

import json
import sys
import time
from pathlib import Path

import nats

DEADLINE_SECONDS = 120
MESSAGES = 1000
BODY_BYTES = 4096

deadline = time.monotonic() + DEADLINE_SECONDS
while True:
    try:
        client = nats.Client()
        break
    except OSError as e:
        if time.monotonic() > deadline:
            sys.exit(f"no answer: {e}")
        time.sleep(0.2)
client.api("STREAM.CREATE.KEPT", name="KEPT", subjects=["kept"], storage="memory")
client.api("STREAM.CREATE.PROBE", name="PROBE", subjects=["probe"], storage="memory")
for number in range(MESSAGES):
    acknowledged = json.loads(client.request("kept", b"%d " % number * (BODY_BYTES // len(b"%d " % number))))
    if acknowledged.get("seq") != number + 1:
        sys.exit(f"message {number}: {acknowledged}")
recorded = {"id": client.info["server_id"], "messages": MESSAGES, "body_bytes": BODY_BYTES}
(Path(sys.argv[1]) / "recorded").write_text(json.dumps(recorded))
