"""A program of its own, which `fipo doctor` runs: which fipo each node of a running Ray cluster imports, as JSON."""

import json
import logging
import os
from typing import Any

TIMEOUT = 60  # seconds for all nodes


def main() -> None:
    """Prints {"nodes": […]}, empty when no cluster runs, or {"error": …}."""
    print("\n" + json.dumps(look()))


def look() -> dict[str, Any]:
    """Asks every live node of the cluster that runs here; never starts one."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        named = os.environ.get("RAY_ADDRESS")
        return {"error": f"RAY_ADDRESS is {named}, but: {error}"} if named else {"nodes": []}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    try:
        return {"nodes": _ask([node for node in ray.nodes() if node["Alive"]])}
    finally:
        ray.shutdown()


def _ask(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def imported() -> dict[str, Any]:  # inner, so that Ray sends its code and not a reference to this module
        try:
            import fipo

            return {"fipo": fipo.__version__}
        except BaseException as error:
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}

    answers = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        task = ray.remote(imported).options(num_cpus=0, scheduling_strategy=here)  # no CPU: a busy node answers too
        answers[node["NodeID"]] = task.remote()
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=TIMEOUT)
    return [
        {"address": node["NodeManagerAddress"], "gpus": node["Resources"].get("GPU", 0)}
        | _answer(answers[node["NodeID"]])
        for node in nodes
    ]


def _answer(reference: Any) -> dict[str, Any]:
    import ray

    try:
        return ray.get(reference, timeout=0)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    main()
