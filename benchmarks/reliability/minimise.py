"""Makes an input that shows a fault smaller, by leaving out pieces while the same fault stays."""

from targets import Target
from watch import watch


def minimise(target: Target, data: bytes, key: str, tries: int = 400) -> bytes:
    """The smallest input found that gives a finding of the same `key`; `data` itself if none does."""

    def same(candidate: bytes) -> bool:
        found = watch(1, lambda _: target.check(candidate)).findings
        return bool(found) and found[0][0] == key

    step = max(1, len(data) // 2)
    while step and tries > 0:
        at, smaller = 0, False
        while at < len(data) and tries > 0:
            tries -= 1
            candidate = data[:at] + data[at + step :]
            if same(candidate):
                data, smaller = candidate, True
            else:
                at += step
        if not smaller:
            step //= 2
    return data
