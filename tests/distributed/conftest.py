import pytest


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """The folder of all runs."""
    from distributed.engines import Workshop

    return Workshop(tmp_path_factory.mktemp("runs"))
