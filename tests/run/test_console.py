"""What a person reads at the end of a run."""

from fipo.run.console import before_and_after
from fipo.run.evaluate import Evaluation


def evaluation(accuracy, *completions):
    return Evaluation(greedy=0, avg_at_k=accuracy, pass_at_k=0, k=1, failed=0, completions=list(completions))


def test_the_first_prompt_whose_score_went_with_the_accuracy():
    worse = evaluation(0.25, (" 2\n", 1.0), (" 3", None), (" 5\n", 0.0), (" 9", 0.0))
    better = evaluation(0.5, (" 1", 0.0), (" 4", 1.0), (" 4\n", 1.0), (" 6", 1.0))
    chat = [{"role": "user", "content": "2 + 2 ="}]
    prompts = ["1 + 1 =", "1 + 3 =", chat, "3 + 3 ="]
    assert before_and_after(prompts, worse, better) == "Prompt:  2 + 2 =\n  before   5\n  after    4"
    assert before_and_after(prompts, better, worse) == "Prompt:  2 + 2 =\n  before   4\n  after    5"
    examples = ["1 + 1 = 2\n2 + 2 = 4\n1 + 0 =", "", "", ""]
    assert before_and_after(examples, worse, worse).startswith("Prompt:  … 1 + 0 =\n")
