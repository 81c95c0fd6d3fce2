"""`helm test`: waits until the fleet is ready, checks that it requires keys, requests a completion.

Arguments: URL, model, `keys` or `open`, seconds to wait. API_KEY is the key, if one is known.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

url, model, mode, wait_s = sys.argv[1:]
key = os.environ.get("API_KEY", "").strip()


def ask(path, body=None, headers=None):
    """Return status and body of the response; status 0 if the connection fails."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **(headers or {})}
    try:
        request = urllib.request.Request(url + path, data, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def check(is_good, sentence):
    print(("ok: " if is_good else "FAILED: ") + sentence, flush=True)
    if not is_good:
        sys.exit(1)


give_up_at = time.monotonic() + float(wait_s)
status, text = ask("/health/ready")
while status != 200 and time.monotonic() < give_up_at:
    time.sleep(2)
    status, text = ask("/health/ready")
check(status == 200, f"{url}/health/ready returns {status} {text[:200]}")

question = {
    "model": model,
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Say hello"}],
}
if mode == "keys":
    status, text = ask("/v1/chat/completions", question)
    check(status == 401, f"a request without a key returns {status}, expected 401")
    stranger = {"authorization": "Bearer qf-" + "x" * 43}
    status, text = ask("/v1/chat/completions", question, stranger)
    check(status == 401, f"a request with an unknown key returns {status}, expected 401")
if mode == "keys" and not key:
    print("skipped: the secret has no entry `key`, so no completion was requested")
    sys.exit(0)
known = {"authorization": f"Bearer {key}"} if key else {}
status, text = ask("/v1/chat/completions", question, known)
while status == 503 and time.monotonic() < give_up_at:  # another model became ready first
    time.sleep(2)
    status, text = ask("/v1/chat/completions", question, known)
check(status == 200, f"a completion returns {status} {text[:200]}")
usage = json.loads(text)["usage"]
check(usage["completion_tokens"] > 0, f"{usage['completion_tokens']} tokens generated")
