"""Hides passwords and keys before a command or a setting is written where others may read it."""

import re

HIDDEN = "***"
SECRET = re.compile(
    r"(?:^|[._-])(?:api_?)?(?:key|token|secret|password|passwd|credentials?)$", re.I
)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
"""User and password in an address: ``https://user:password@host``."""


def is_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret: ``task.api_key``, but not ``block_tokens``."""
    return SECRET.search(key) is not None


def without_address_secrets(text: str) -> str:
    """Returns ``text`` with user and password hidden in every address."""
    return IN_ADDRESS.sub(f"{HIDDEN}@", text)


def without_secrets(words: list[str]) -> list[str]:
    """Returns the words of a command with the values of its secret settings hidden.

    Settings are ``key=value``; ``--key value`` and ``--key=value`` are understood too.
    """
    kept: list[str] = []
    for index, word in enumerate(words):
        key, equals, _ = word.partition("=")
        before = words[index - 1] if index else ""
        if equals and is_secret(key):
            kept.append(f"{key}={HIDDEN}")
        elif before.startswith("--") and "=" not in before and is_secret(before):
            kept.append(HIDDEN)
        else:
            kept.append(without_address_secrets(word))
    return kept
