# SPDX-License-Identifier: MIT
"""Have Tomcat's example of sessions note something, and print the session: its number, its age, what is noted.

usage: ask.py SECONDS SESSION|- [NAME VALUE]
"""

import re
import sys
import time
import urllib.request

SESSIONS = "http://127.0.0.1:8081/examples/servlets/servlet/SessionExample"
NUMBER = re.compile(r"Session ID: (\w+)")
CREATED = re.compile(r"Created:\s*(.*?)<br>", re.DOTALL)
NOTED = re.compile(r"^(\w+) = (\w+)$", re.MULTILINE)

seconds, session, *pair = sys.argv[1:]
request = urllib.request.Request(SESSIONS + ("?dataname={}&datavalue={}".format(*pair) if pair else ""))
if session != "-":
    request.add_header("Cookie", f"JSESSIONID={session}")
deadline = time.monotonic() + float(seconds)
while True:
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
            break
    except OSError as e:
        if time.monotonic() > deadline:
            sys.exit(f"no answer: {e}")
        time.sleep(0.5)
for pattern in (NUMBER, CREATED):
    found = pattern.search(text)
    print(found[1].strip() if found else "nothing")
for name, value in NOTED.findall(text):
    print(f"{name}={value}")
