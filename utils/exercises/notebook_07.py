"""The exercises of notebooks/07_prompting.ipynb."""

import re

from utils.exercises import exercise, mistake

# Read the answer ------------------------------------------------------------------------------------------------------

NUMBER = r"-?\d+(?:,\d{3})*"


def _replies() -> list[tuple]:
    return [
        ("9 + 7 = 16. 16 - 2 = 14. The answer is 14.",),
        ("The answer is 12. Question: Tom has 5 pens and buys 3.",),
        ("First the answer is 3, no: the answer is 4, as 2 + 2 = 4 = 8 / 2",),
        ("She pays $1,250 in all",),
        ("He has 3 apples and eats 5, so -2",),
        ("I do not know.",),
    ]


@exercise(_replies)
def parse_answer(reply):
    _, said, rest = reply.rpartition("answer is")
    found = re.findall(NUMBER, rest if said else reply)
    if not found:
        return "none"
    return found[0 if said else -1].replace(",", "")


@mistake(
    "parse_answer", 'You take the last number: after "answer is" the first one counts, for the model may go on writing.'
)
def _(reply):
    found = re.findall(NUMBER, reply)
    return found[-1].replace(",", "") if found else "none"


@mistake("parse_answer", "You take the first number: that is a number of the steps, not their result.")
def _(reply):
    found = re.findall(NUMBER, reply)
    return found[0].replace(",", "") if found else "none"


@mistake("parse_answer", 'Where "answer is" stands more than once, the last one counts: use rpartition.')
def _(reply):
    _, said, rest = reply.partition("answer is")
    found = re.findall(NUMBER, rest if said else reply)
    return found[0 if said else -1].replace(",", "") if found else "none"


@mistake("parse_answer", 'Without "answer is" you give up: take the last number of the reply.')
def _(reply):
    _, said, rest = reply.rpartition("answer is")
    return re.findall(NUMBER, rest)[0].replace(",", "") if said else "none"


@mistake("parse_answer", "You cut numbers at the comma of thousands: 1,250 is one number, and its text is 1250.")
def _(reply):
    _, said, rest = reply.rpartition("answer is")
    found = re.findall(r"-?\d+", rest if said else reply)
    return found[0 if said else -1] if found else "none"


@mistake("parse_answer", "The comma is still in the number: 1,250 and 1250 must be the same answer.")
def _(reply):
    _, said, rest = reply.rpartition("answer is")
    found = re.findall(NUMBER, rest if said else reply)
    return found[0 if said else -1] if found else "none"


@mistake("parse_answer", "You lose the sign of negative numbers.")
def _(reply):
    return parse_answer(reply).lstrip("-")


# Majority vote --------------------------------------------------------------------------------------------------------


def _chains() -> list[tuple]:
    return [
        (["12", "14", "12"],),
        (["none", "none", "none", "7", "8", "8"],),
        (["5", "9", "5", "9", "3"],),
        (["30", "4", "4", "30", "30", "6"],),
        (["6", "none", "none", "7", "7"],),
        (["none", "none"],),
    ]


def _count(answers) -> dict:
    return {answer: answers.count(answer) for answer in answers}


@exercise(_chains)
def majority_vote(answers):
    votes = _count([answer for answer in answers if answer != "none"])
    return max(votes, key=votes.get) if votes else "none"


@mistake("majority_vote", 'Chains without an answer vote too: leave "none" out.')
def _(answers):
    votes = _count(answers)
    return max(votes, key=votes.get)


@mistake("majority_vote", "You return the number of votes: return the answer.")
def _(answers):
    return max(_count([answer for answer in answers if answer != "none"]).values(), default=0)


@mistake("majority_vote", "You return the largest answer, not the commonest.")
def _(answers):
    given = [answer for answer in answers if answer != "none"]
    return max(given, key=int) if given else "none"


@mistake("majority_vote", "Of equally common answers the first one counts; you return the last.")
def _(answers):
    votes = _count([answer for answer in reversed(answers) if answer != "none"])
    return max(votes, key=votes.get) if votes else "none"


@mistake("majority_vote", "You return the first chain's answer: that is one sample, not a vote.")
def _(answers):
    return answers[0]


@mistake("majority_vote", "You return the rarest answer.")
def _(answers):
    votes = _count([answer for answer in answers if answer != "none"])
    return min(votes, key=votes.get) if votes else "none"


# Build a few-shot prompt ----------------------------------------------------------------------------------------------


def _shown() -> list[tuple]:
    capitals = [("Capital of Peru?", "Lima"), ("Capital of Mali?", "Bamako")]
    return [
        ("Capital of Cuba?", capitals, "Answer the questions."),
        ("2 + 2?", [("1 + 1?", "2")], "Add."),
        ("A?", [], "Say B."),
    ]


def _asked(question, answer=None) -> str:
    return f"Question: {question}\nAnswer:" + ("" if answer is None else f" {answer}")


@exercise(_shown)
def few_shot_prompt(question, examples, instruction):
    return "\n\n".join([instruction, *(_asked(*example) for example in examples), _asked(question)])


@mistake("few_shot_prompt", "The prompt ends in a space: words begin with theirs, so the model must write it itself.")
def _(question, examples, instruction):
    return few_shot_prompt(question, examples, instruction) + " "


@mistake("few_shot_prompt", "The examples show no answers: then the model sees only questions, and asks another one.")
def _(question, examples, instruction):
    return "\n\n".join([instruction, *(_asked(q) for q, _ in examples), _asked(question)])


@mistake(
    "few_shot_prompt",
    "The examples stand after the question: a model reads from left to right, the question comes last.",
)
def _(question, examples, instruction):
    return "\n\n".join([instruction, _asked(question), *(_asked(*example) for example in examples)])


@mistake("few_shot_prompt", "The instruction is missing.")
def _(question, examples, instruction):
    return few_shot_prompt(question, examples, instruction).removeprefix(instruction + "\n\n")


@mistake("few_shot_prompt", "Between two examples an empty line is missing: nothing shows where one ends.")
def _(question, examples, instruction):
    return "\n".join([instruction, *(_asked(*example) for example in examples), _asked(question)])


@mistake("few_shot_prompt", "The question does not look like the examples: give it the same words, up to Answer:")
def _(question, examples, instruction):
    return "\n\n".join([instruction, *(_asked(*example) for example in examples), question])


@mistake("few_shot_prompt", "The examples are in another order than given.")
def _(question, examples, instruction):
    return few_shot_prompt(question, examples[::-1], instruction)
