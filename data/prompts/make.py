"""Write problems.jsonl and letters.jsonl again: `python data/prompts/make.py`. The other sets were written by hand.

Each question is a sentence pattern with numbers or names drawn by a fixed seed; `steps` is its worked solution.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
EACH = 120  # questions of each difficulty
NAMES = "Mia Noah Emma Liam Olivia Ethan Ava Lucas Sofia Daniel Grace Henry Chloe Samuel Nora Leo Ruby Oscar Alice Hugo"
THINGS = "apples pencils stickers marbles cookies books shells coins cards balloons stamps oranges"

# Easy: one-digit numbers, first up, then down.
EASY = [
    "{name} has {a} {things}. A friend gives {name} {b} more, and then {name} loses {c}. How many {things} does {name} have now?",
    "There are {a} {things} on a table. {name} puts {b} more on it and later takes {c} away. How many {things} are on the table?",
    "{name} buys {a} {things} on Monday and {b} on Tuesday, and gives {c} of them away. How many {things} are left?",
    "{name} found {a} {things} and then {b} more, but {c} of them broke. How many {things} are left?",
    "{name} had {a} {things}, bought {b} more and lost {c}. How many {things} does {name} have?",
    "{name} puts {a} {things} in a box, adds {b} and takes {c} out. How many {things} are in the box?",
]
EASY = [(text, "+", "-") for text in EASY]
# Hard: a product of a one-digit and a two-digit number, then a sum or a difference of two-digit numbers.
HARD = [
    (
        "{name} packs {a} boxes with {b} {things} in each, and then sells {c} {things}. How many {things} are left?",
        "*",
        "-",
    ),
    (
        "{a} classes of {b} children and {c} teachers go to the museum with {name}. How many children and teachers go?",
        "*",
        "+",
    ),
    ("{name} earns {b} dollars a day for {a} days and spends {c} dollars of it. How many dollars are left?", "*", "-"),
    (
        "A train has {a} cars with {b} seats each. {c} seats are taken when {name} gets on. How many seats are free?",
        "*",
        "-",
    ),
    (
        "{name} reads {b} pages a day for {a} days, and has {c} pages left to read. How many pages does the book have?",
        "*",
        "+",
    ),
    (
        "{name} buys {a} bags of {b} {things} and already has {c} at home. How many {things} does {name} have in all?",
        "*",
        "+",
    ),
    (
        "The garden of {name} has {a} rows of {b} trees. A storm fells {c} of them. How many trees are still standing?",
        "*",
        "-",
    ),
    (
        "{name} runs {b} minutes on each of {a} days, and then {c} minutes on Sunday. How many minutes does {name} run?",
        "*",
        "+",
    ),
]
COMPUTE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def problem(rng: random.Random, difficulty: str) -> dict:
    text, first, second = rng.choice(EASY if difficulty == "easy" else HARD)
    while True:
        a, b, c = (rng.randint(2, 9) for _ in range(3))
        if difficulty == "hard":
            b, c = rng.randint(11, 29), rng.randint(11, 49)
        between = COMPUTE[first](a, b)
        end = COMPUTE[second](between, c)
        if between > 0 and end > 0 and len({a, b, c}) == 3:
            break
    question = text.format(name=rng.choice(NAMES.split()), things=rng.choice(THINGS.split()), a=a, b=b, c=c)
    steps = f"{a} {first} {b} = {between}. {between} {second} {c} = {end}. The answer is {end}."
    return dict(question=question, answers=[str(end)], steps=steps, topic="word problems", difficulty=difficulty)


def letters(rng: random.Random, count: int) -> dict:
    words = rng.sample(NAMES.split(), count)
    answer = "".join(word[-1] for word in words)
    parts = [f'The last letter of "{word}" is "{word[-1]}".' for word in words]
    steps = " ".join([*parts, f'Putting them together gives "{answer}". The answer is {answer}.'])
    question = f'Take the last letters of the words in "{" ".join(words)}" and put them together.'
    return dict(question=question, answers=[answer], steps=steps, topic="last letters", difficulty=f"{count} words")


def write(name: str, makers: list) -> None:
    rows, seen = [], set()
    for make, argument in makers:
        rng, group = random.Random(f"{name} {argument}"), []
        while len(group) < EACH:
            row = make(rng, argument)
            if row["question"] not in seen:
                seen.add(row["question"])
                group.append(row | {"origin": "made from sentence patterns by data/prompts/make.py"})
        rows += group
    (HERE / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write("problems", [(problem, "easy"), (problem, "hard")])
    write("letters", [(letters, 2), (letters, 4)])
