"""What is printed for people to run: the next command of a command's output."""

import shlex


def next_command(shown: str) -> list[str]:
    """The arguments of `hf-msa` in the line that says what comes next."""
    (line,) = (line for line in shown.splitlines() if line.startswith("Next: "))
    words = shlex.split(line.removeprefix("Next: "), comments=True)
    begin = 1 if words[0] == "hf-msa" else words.index("hf_msa_cli") + 1
    return words[begin:]
