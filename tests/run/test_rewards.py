"""Rewards by name: what they score, and that one that raises never becomes a silent 0."""

import importlib
import sys

import harmless
import pytest
from reasoning_gym.factory import DATASETS

from fipo import InvalidParameterError
from fipo.run.data import load_prompts
from fipo.run.rewards import SAFE_TASKS, load_rewards


def score(spec, completion, answer="83", length=10, **columns):
    (reward,) = load_rewards([spec], max_completion_length=100)
    columns = {name: [value] for name, value in columns.items()}
    return reward(completions=[completion], completion_ids=[[0] * length], answer=[answer], **columns)[0]


ANSWER = {"regex": {"pattern": r"answer: (?P<answer>\w+)"}}
SCORES = [
    ("last_number", "47 < 83", "83", 1),
    ("last_number", "83, not 47", "83", 0),
    ("last_number", "about 1,024.50.", "1024.5", 1),
    ("last_number", "no number", "83", 0),
    ("last_number", "x = -3", "-3", 1),
    ("exact", " yes \n", "yes", 1),
    ("exact", "yes.", "yes", 0),
    ({"regex": {"pattern": r"^\d+$"}}, "123", "", 1),
    (r"{regex: {pattern: '^\d+$'}}", "12a", "", 0),  # as a flag writes it
    (ANSWER, "the answer: 83", "83", 1),
    (ANSWER, "the answer: 84", "83", 0),
    ("math", r"so it is \boxed{\frac{1}{2}}", "0.5", 1),
    ("math", r"so it is \boxed{2}", "0.5", 0),
    ("last_number", "1.5e3", "1500", 1),
    ("last_number", "it is .5", "1/2", 1),
    ("last_number", "8-5", "5", 1),
    ("last_number", "−7", "-7", 1),
    ("last_number", r"\boxed{\frac{3}{4}}", "0.75", 1),
    ("last_number", "4", "3/4", 0),
    ("last_number", "9007199254740992", "9007199254740993", 0),
    ("last_number", "1e400", "1e401", 0),
    ("last_number", "seven, or 8", ["7", "8"], 1),
    ("exact", "seven", ["7", "seven"], 1),
    ("exact", "['7', 'seven']", ["7", "seven"], 0),
    ("exact", "None", None, None),  # no answer is no answer
    ("exact", "", "", None),
    (ANSWER, "answer: None", None, None),
    ("exact", "72", 72, 1),
    ("math", r"\boxed{2\sqrt{5}}", r"2\sqrt{5}", 1),
    ("math", r"\boxed{2}", r"2\sqrt{5}", 0),
    ("math", r"\boxed{10080}", r"10,\!080", 1),
    ("math", r"\boxed{(2,\infty)}", r"(-\infty, 2) \cup (3, \infty)", 0),
    ("math", r"\boxed{5}", r"hence $x = \boxed{5}$", 1),
    ("last_number", [{"role": "assistant", "content": "83"}], "83", 1),
]


@pytest.mark.parametrize(("spec", "completion", "answer", "expected"), SCORES)
def test_scores(spec, completion, answer, expected):
    assert score(spec, completion, answer) == expected


def test_overlong_is_dapos_soft_penalty():
    for length, expected in {80: 0.0, 90: -0.5, 100: -1.0, 10: 0.0}.items():
        assert score("overlong", "", length=length) == expected
        assert score("{overlong: {buffer: 20, limit: 100, weight: 0.5}}", "", length=length) == expected


def test_reasoning_gym_scores_its_own_answers():
    row = load_prompts({"rg:chain_sum": {"size": 3, "max_terms": 2}}, seed=1)[0]
    columns = {"reasoning_gym": row["reasoning_gym"]}
    assert score("reasoning_gym", row["answer"], **columns) == 1
    assert score("reasoning_gym", f"<answer>{row['answer']}</answer> so", **columns) == 1
    assert score("reasoning_gym", "-1", **columns) < 1


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of somebody's own, and loads the reward `f` of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def load(code, **options):
        (tmp_path / "own.py").write_text(code)
        sys.modules.pop("own", None)
        importlib.invalidate_caches()
        return load_rewards([{"python:own:f": options}], max_completion_length=100)[0]

    return load


JUDGE = """
class Judge:
    def __call__(self, completions, scale: int, **_):
        scores = [scale * len(c) for c in completions]
        completions.clear()
        return scores
f = Judge()
"""
WRAPPED = """
import functools
def adapt(function):
    return functools.wraps(function)(lambda completions, **columns: function(completions, columns["answer"]))
@adapt
def f(completions, gold): return [float(one == right) for one, right in zip(completions, gold)]
"""


@pytest.mark.parametrize(
    ("code", "scale", "expected", "failed"),
    [
        ("def f(completions, answer, scale=1, **_): return [scale * len(c) for c in completions]", 2, [4, 0, 2], 0),
        ("def f(completions, **_): return [1 / len(c) for c in completions]", None, [0.5, None, 1.0], 1),
        ("def f(completions, **_): return [None, 1.0, 2.0]", None, [None, 1.0, 2.0], 0),  # None: it does not apply
        (JUDGE, 2, [4, 0, 2], 0),  # an object, which changes its arguments
        (WRAPPED, None, [1, 0, 0], 0),  # a wrapper that takes every column needs none of what it wraps
    ],
)
def test_a_function_of_ones_own(code, scale, expected, failed, own):
    """Where it raises, only the sample fails that it raises for."""
    reward = own(code, weight=0.1, **({"scale": scale} if scale else {}))
    assert (reward.__name__, reward.weight) == ("f", 0.1)
    for _ in range(2):
        assert reward(["ab", "", "a"], [[1]] * 3, answer=["ab", "x", "x"]) == expected
        assert reward.failed == [bool(failed) and score is None for score in expected]
    assert reward.failures == 2 * failed


def test_a_dead_verifier_is_not_asked_for_every_sample(own):
    reward = own("calls = []\ndef f(completions, **_): calls.append(0); raise OSError('down')\n")
    assert reward(completions=["a"] * 100, completion_ids=[[1]] * 100) == [None] * 100
    assert all(reward.failed) and reward.failures == 100
    assert len(importlib.import_module("own").calls) == 1 + 4


def test_what_a_model_wrote_does_not_reach_the_terminal(own, caplog):
    own("def f(completions, **_): raise RuntimeError(completions[0])\n")(["\x1b[2J"], [[1]])
    assert "RuntimeError" in caplog.text and "\\x1b[2J" in caplog.text and "\x1b" not in caplog.text


def test_one_bad_prompt_does_not_cost_the_others(own):
    """All samples of a prompt stand together, and fail together where its answer cannot be used."""
    reward = own("def f(completions, answer, **_): return [float(a) for a in answer]\n")
    answers = ["broken"] * 16 + ["1"] * 16 + ["broken"] * 8
    prompts = [[{"role": "user", "content": str(index // 8)}] for index in range(40)]
    assert reward(["a"] * 40, [[1]] * 40, prompts=prompts, answer=answers) == [None] * 16 + [1.0] * 16 + [None] * 8
    assert reward.failed == [answer == "broken" for answer in answers]


def test_a_refusal_after_a_failure_is_still_a_refusal(own):
    code = """
import fipo
def f(completions, **_):
    if completions[0] == "a": raise OSError("down")
    raise fipo.InvalidParameterError("not this one; change it.")
"""
    with pytest.raises(InvalidParameterError, match="not this one"):
        own(code)(["a", "b"], [[1]] * 2)


@pytest.mark.parametrize("task", ["countdown", "puzzle24", "n_queens", "simple_integration"])
def test_what_a_model_writes_is_not_run_as_code(task):
    row = load_prompts({f"rg:{task}": {"size": 1}}, seed=1)[0]
    columns = {"reasoning_gym": row["reasoning_gym"]}
    with pytest.raises(InvalidParameterError, match=f"scorer of {task} calls eval or the like"):
        score("reasoning_gym", "1", **columns)
    assert score({"reasoning_gym": {"allow_eval": True}}, row["answer"], **columns) == 1


def test_rewards_of_one_name_are_told_apart():
    rewards = load_rewards([{"regex": {"pattern": "a"}}, "exact", {"regex": {"pattern": "b"}}], max_completion_length=1)
    assert [reward.__name__ for reward in rewards] == ["regex", "exact", "regex_2"]


BAD = [
    ([], "rewards is empty"),
    (["nope"], "The reward 'nope' is unknown; use one of math"),
    (["python:nowhere:f"], "A reward is 'python:nowhere:f', but there is no module nowhere"),
    ([{"exact": {"pattern": 1}}], "'exact' does not take .* unexpected .*'pattern'.; its options: none"),
    (["{overlong: {bufer: 1}}"], "'overlong' does not take .*'bufer'.; its options: limit, buffer"),
    ([{"overlong": {"buffer": 1.5}}], "buffer is 1.5, but must be a whole number of tokens from 1 to"),
    ([{"overlong": {"buffer": 0}}], "buffer is 0, but must be"),
    (["{overlong: {buffer: 1, buffer: 2}}"], "not YAML .the key buffer stands there twice"),
    ([{"exact": {}, "math": {}}], "but must be a name, or one name with its options"),
    ([{"exact": 2}], "but must be a name, or one name with its options"),
    ([3], "A reward is 3, but must be a name"),
    ([{"exact": {"weight": "abc"}}], "weight of the reward 'exact' is 'abc', but must be a finite number"),
    ([{"exact": {"weight": float("nan")}}], "is nan, but must be a finite number"),
    (["regex"], "'regex' does not take {} .*missing 1 required .*'pattern'"),
    ([{"regex": {"pattern": "("}}], r"does not take {'pattern': '\('} .missing \), unterminated"),
    ([{"regex": {"pattern": 12}}], "does not take {'pattern': 12} .first argument must be string"),
    ([{"regex": {"pattern": ""}}], "the pattern is empty"),
    (["python:broken_syntax:f"], "cannot be imported .SyntaxError"),
    (["python:broken_start:f"], "cannot be imported .RuntimeError: no"),
    (["python:waits:f"], "f is no plain function, but a function"),
    (["python:math:pi"], "pi is no plain function, but a float"),
    (["python:math"], "it has another form"),
    ([{"reasoning_gym": {"allow_eval": "maybe"}}], "allow_eval is 'maybe', but must be true or false"),
]


@pytest.mark.parametrize(("names", "sentence"), BAD)
def test_bad_specs(names, sentence, tmp_path, monkeypatch):
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    (tmp_path / "broken_start.py").write_text("raise RuntimeError('no')\n")
    (tmp_path / "waits.py").write_text("async def f(completions, **_): return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidParameterError, match=sentence):
        load_rewards(names, max_completion_length=100)


def test_safe_tasks_call_nothing_that_runs_text():
    assert [task for task in SAFE_TASKS if not harmless.only_harmless_calls(DATASETS[task][0])] == []


DID = {  # the body of a reward → what is said of it
    "return [float('nan')] * len(completions)": "returned [nan], but must return a list of finite numbers",
    "return 'good'": "returned 'good', but must return",
    "return {0: 1.0}": "returned {0: 1.0}, but must return",
    "return [10**400]": "but must return a list of finite numbers",
    "exit()": "f raised SystemExit: None; its samples are counted",
}


@pytest.mark.parametrize("body", DID)
def test_what_a_reward_did_is_said(body, own, monkeypatch):
    warnings = []
    monkeypatch.setattr("fipo.run.rewards.logger.warning", lambda line, **_: warnings.append(line))
    assert own(f"def f(completions, **_): {body}\n")(["a"], [[1]]) == [None]
    assert DID[body] in warnings[0]


def test_hostile_text_is_only_text():
    assert score("last_number", "1", answer="nothing") is None  # NaN is a failure
    hostile = "\x00\u202e" + "9" * 5000 + "</script>{{7*7}}"
    for name in ("last_number", "exact", "math"):
        assert score(name, hostile) in (0, 0.0, None)


@pytest.mark.parametrize("name", ["exact", "last_number", "math", "{regex: {pattern: '(?P<answer>.)'}}"])
def test_a_comparison_without_an_answer_is_refused_whatever_the_completion(name):
    (reward,) = load_rewards([name], max_completion_length=8)
    with pytest.raises(InvalidParameterError, match="A reward compares with an answer, but the data"):
        reward([""], [[]], level=[1])
