"""``python -m tests.doubles restart FOLDER``: start a double's server again after it crashed."""

import sys

from tests.doubles.engine import Store, advance

if len(sys.argv) != 3 or sys.argv[1] != "restart":
    sys.exit("usage: python -m tests.doubles restart FOLDER")
with Store(sys.argv[2]) as store:
    store.state["crashed"] = False
    advance(store)
