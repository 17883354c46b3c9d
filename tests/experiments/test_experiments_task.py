"""The task's verifier, tokenizer and split."""

import random

import pytest

from experiments.task import CHAINS, LONG, SHORT, Problem, encode, reward, sample_problem

pytestmark = pytest.mark.beside

PROBLEM = Problem(158, 967, SHORT)


def test_the_solution_is_what_one_writes_by_hand():
    assert PROBLEM.prompt == "158+02*967="
    assert PROBLEM.solution == "a8+7+0=15,5+6+1=12,1+9+1=11:125\nb5+7+0=12,2+6+1=09,1+9+0=10:092"
    assert PROBLEM.answer == "092"
    assert (SHORT.solution_tokens, LONG.solution_tokens) == (64, 512)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_solutions_are_right_and_of_one_length(chain):
    generator = random.Random(0)
    for _ in range(200):
        problem = sample_problem(chain, generator, held_out=False)
        assert len(encode(problem.solution)) + 1 == chain.solution_tokens <= chain.max_tokens
        assert problem.solution[-3:] == problem.answer
        assert int(problem.answer) == (problem.start + chain.lines * problem.step) % 1000
        assert reward(problem, problem.solution, ended=True) == 1
        for column in problem.solution.replace("\n", ",").split(","):
            sum_, total = column.lstrip("abcdefghijklmnop").split(":")[0].split("=")
            assert sum(map(int, sum_.split("+"))) == int(total)


HOSTILE = [
    "", "092", ":", ":09", ":0092", ":92", ":092 ", ":092\n", ":0920", ":+092", ":092:", ":091", ":092:091", ": 092",
    ":0_92", ":092.0", ":092\x00", ":٠٩٢", ":０９２",  # int() would read digits of other scripts
]  # fmt: skip


@pytest.mark.parametrize("response", HOSTILE)
def test_hostile_responses_get_nothing_and_only_one_that_ended_is_rewarded(response):
    assert reward(PROBLEM, response, ended=True) == 0
    assert reward(PROBLEM, ":092", ended=True) == 1  # the last total alone decides
    assert reward(PROBLEM, PROBLEM.solution, ended=False) == 0


def test_held_out_problems_are_never_trained_on():
    generator = random.Random(0)
    trained = {sample_problem(SHORT, generator, held_out=False).prompt for _ in range(3000)}
    held_out = {sample_problem(SHORT, generator, held_out=True).prompt for _ in range(3000)}
    assert not trained & held_out
    share = sum(Problem(start, 5, SHORT).held_out for start in range(1000)) / 1000
    assert 0.05 < share < 0.15
