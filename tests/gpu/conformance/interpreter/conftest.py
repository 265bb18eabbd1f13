"""Sends the tests of this folder to a process in which Triton interprets."""

import pytest

from .child import Child

_children = pytest.StashKey[Child]()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    config = pyfuncitem.config
    child = config.stash.get(_children, None)
    if child is None or not child.alive:
        child = Child(config.rootpath)
        config.stash[_children] = child
        config.add_cleanup(child.close)
    module = ".".join(pyfuncitem.path.relative_to(config.rootpath).with_suffix("").parts)
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    failure = child.call(module, pyfuncitem.originalname, arguments)
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True
