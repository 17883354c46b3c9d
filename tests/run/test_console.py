"""What a person reads at the end of a run."""

from fipo.run.console import before_and_after
from fipo.run.evaluate import Evaluation


def evaluation(*completions):
    return Evaluation(greedy=0, avg_at_k=0, pass_at_k=0, k=1, failed=0, completions=list(completions))


def test_the_first_prompt_whose_score_changed():
    before = evaluation((" 2\n", 1.0), (" 5\n", 0.0), (" 9", 0.0))
    after = evaluation((" 2", 1.0), (" 4\n", 1.0), (" 6", 1.0))
    chat = [{"role": "user", "content": "2 + 2 ="}]
    told = before_and_after(["1 + 1 =", chat, "3 + 3 ="], before, after)
    assert told == "Prompt:  2 + 2 =\n  before   5\n  after    4"
    examples = ["1 + 1 = 2\n2 + 2 = 4\n1 + 0 =", "", ""]
    assert before_and_after(examples, before, before).startswith("Prompt:  … 1 + 0 =\n")
