"""exits.py CODE COMMAND...: runs a command and fails unless it ends with that code."""

import subprocess
import sys

wanted, command = int(sys.argv[1]), sys.argv[2:]
done = subprocess.run(command, check=False)
if done.returncode != wanted:
    sys.exit(f"exit code {done.returncode} instead of {wanted}: {' '.join(command)}")
