import pytest


@pytest.fixture(scope="session")
def engines(tmp_path_factory):
    """slime and Megatron, without Ray. What is missing is one sentence, before anything starts."""
    from slime_runs import SlimeRuns

    try:
        return SlimeRuns(tmp_path_factory.mktemp("slime"))
    except ValueError as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture(scope="session")
def updates(engines):
    """Gives the metrics of a scenario's updates; runs each scenario once."""
    with engines.ray():
        yield engines.updates
