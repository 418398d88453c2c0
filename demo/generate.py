"""Build the demo world: its training text and its five held-out tasks, from one seed.

    python generate.py --out FOLDER            # writes FOLDER/train.txt and, beside this file, tasks/

The world is closed and invented: people with a job, a home town, a pet and a favourite food; kinds of animals with a
class, a food, a place and a colour; things made of a material; and rules that hold for every job, town, class and
material. The training text states these facts in several ways and also asks about them in the forms of the five tasks.
A document of a task asks about a combination whose question is never asked in the training text; what is needed to
answer it is stated there, in other words and often in two separate places.

Only the standard library is used. The same seed gives the same bytes.
"""

import argparse
import json
import random
from pathlib import Path

SEED = 20
TRAINING_LINES = 260_000
DOCUMENTS_PER_TASK = 320

PEOPLE = 500
KINDS = 90
THINGS = 130

# ---- the vocabulary of the world ---------------------------------------------------------------------------------

JOBS = {  # job: the tool everyone with this job owns
    "baker": "an oven", "smith": "an anvil", "farmer": "a plough", "fisher": "a net", "tailor": "a needle",
    "painter": "a brush", "miller": "a mill", "mason": "a trowel", "writer": "a pen", "cook": "a ladle",
    "gardener": "a spade", "hunter": "a bow", "potter": "a wheel", "weaver": "a loom", "carpenter": "a saw",
    "barber": "a razor", "sailor": "a rope", "miner": "a pick", "drummer": "a drum", "teacher": "a slate",
    "guard": "a spear", "singer": "a harp", "judge": "a book", "butcher": "a knife",
}
REGIONS = ["the hills", "the valley", "the marsh", "the desert", "the forest", "the north"]
FOODS = ["soup", "bread", "rice", "beans", "cheese", "plums", "honey", "eggs", "fish stew", "noodles", "apples", "figs",
         "carrots", "pancakes", "dates", "olives", "peas", "walnuts", "pears", "cherries", "corn", "yams", "leeks", "melon"]
CLASSES = {  # class of animal: covering, way of moving, how one is caught
    "bird": ("feathers", "flies", "a cage"),
    "fish": ("scales", "swims", "a hook"),
    "beast": ("fur", "runs", "a trap"),
    "bug": ("a shell", "crawls", "a jar"),
    "frog": ("wet skin", "hops", "a bucket"),
    "worm": ("slime", "digs", "a shovel"),
}
FEED = ["seeds", "moss", "roots", "ants", "berries", "grass", "leaves", "snails", "nuts", "bark", "crumbs", "reeds",
        "flowers", "shrimp", "mice", "clover"]
PLACES = ["caves", "ponds", "trees", "barns", "fields", "rivers", "cliffs", "swamps", "dunes", "hedges", "wells", "ruins"]
COLOURS = ["red", "blue", "green", "white", "black", "brown", "yellow", "grey", "pink", "purple"]
MATERIALS = {  # material: in water, in fire, when it falls, what mends it, what cuts it
    "wood": ("floats", "burns", "makes a thud", "nails", "a saw"),
    "iron": ("rusts", "glows", "rings loudly", "a weld", "a torch"),
    "glass": ("shines", "cracks", "shatters", "resin", "a diamond"),
    "wool": ("shrinks", "smokes", "lands softly", "yarn", "shears"),
    "paper": ("tears", "turns to ash", "drifts down", "tape", "scissors"),
    "clay": ("gets soft", "gets hard", "crumbles", "mud", "a wire"),
    "wax": ("stays dry", "melts", "dents", "heat", "a blade"),
    "leather": ("gets heavy", "curls up", "slaps the floor", "a stitch", "a knife"),
    "stone": ("sinks", "stays cool", "chips", "cement", "a chisel"),
    "rubber": ("bobs about", "stinks", "bounces", "glue", "a razor"),
}

# ---- names -------------------------------------------------------------------------------------------------------


def invent_names(rnd, count, starts, middles, ends, taken):
    """`count` new names made of a start, a middle and an end, in random order, none of them in `taken`."""
    every = [a + b + c for a in starts for b in middles for c in ends]
    rnd.shuffle(every)
    names = [name for name in every if name not in taken][:count]
    if len(names) < count:
        raise ValueError(f"only {len(names)} names can be made, {count} are needed")
    taken.update(names)
    return names


class World:
    """Every entity and its attributes. Attributes are dictionaries from the entity's name to the value's text."""

    def __init__(self, rnd):
        taken = set(JOBS) | set(FOODS) | set(FEED) | set(PLACES) | set(MATERIALS) | set(COLOURS)
        first = invent_names(rnd, 36, ["Ba", "De", "Fi", "Go", "Lu", "Ma", "Ne", "Ri", "To", "Va"], ["l", "r", "n", "v"],
                             ["a", "o", "is", "en"], taken)
        last = invent_names(rnd, 36, ["Bro", "Cla", "Dre", "Fla", "Gri", "Plo", "Ste", "Tra", "Wo"], ["m", "n", "l", "s"],
                            ["k", "t", "d", "by"], taken)
        towns = invent_names(rnd, 24, ["Or", "Mir", "Kel", "Pas", "Ul", "Zan"], ["v", "d", "b"], ["el", "ona", "ick", "um"], taken)
        self.kinds = invent_names(rnd, KINDS, ["bl", "dr", "gl", "kr", "pl", "sn", "tr", "v", "z", "m"], ["a", "e", "i", "o", "u"],
                                  ["ck", "mp", "nk", "ff", "sh"], taken)
        self.things = invent_names(rnd, THINGS, ["d", "f", "g", "j", "k", "l", "n", "p", "r", "w"], ["a", "e", "i", "o", "u"],
                                   ["bble", "ddle", "rp", "zz", "gget"], taken)
        everyone = [f"{a} {b}" for a in first for b in last]
        rnd.shuffle(everyone)
        self.people = everyone[:PEOPLE]
        woman = set(first[::2])
        self.pronoun = {p: "she" if p.split()[0] in woman else "he" for p in self.people}

        def assign(entities, values):
            """Each value about equally often, in random order."""
            values = list(values)
            cycle = [values[i % len(values)] for i in range(len(entities))]
            rnd.shuffle(cycle)
            return dict(zip(entities, cycle))

        self.region = assign(towns, REGIONS)
        self.towns = towns
        self.job = assign(self.people, JOBS)
        self.town = assign(self.people, towns)
        self.pet = assign(self.people, self.kinds)
        self.food = assign(self.people, FOODS)
        self.animal_class = assign(self.kinds, CLASSES)
        self.feed = assign(self.kinds, FEED)
        self.place = assign(self.kinds, PLACES)
        self.kind_colour = assign(self.kinds, COLOURS)
        self.material = assign(self.things, MATERIALS)
        self.thing_colour = assign(self.things, COLOURS)


def a(word):
    """The word with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def capital(text):
    return text[0].upper() + text[1:]


# ---- statements --------------------------------------------------------------------------------------------------


def about_person(rnd, w, p):
    """One line that states two to four facts about a person, in random order and words."""
    he = w.pronoun[p]
    clauses = [
        rnd.choice([f"is {a(w.job[p])}", f"works as {a(w.job[p])}"]),
        rnd.choice([f"lives in {w.town[p]}", f"has a house in {w.town[p]}"]),
        rnd.choice([f"has a pet {w.pet[p]}", f"keeps a {w.pet[p]}"]),
        rnd.choice([f"likes {w.food[p]}", f"often eats {w.food[p]}"]),
    ]
    rnd.shuffle(clauses)
    count = rnd.choice([2, 3, 4, 4])
    if count == 2:
        return f"{p} {clauses[0]} and {clauses[1]}."
    if count == 3:
        return f"{p} {clauses[0]} and {clauses[1]}. {capital(he)} {clauses[2]}."
    return f"{p} {clauses[0]} and {clauses[1]}. {capital(he)} {clauses[2]} and {clauses[3]}."


def about_kind(rnd, w, k):
    """One line that states two or three facts about a kind of animal."""
    clauses = [
        f"is a kind of {w.animal_class[k]}",
        rnd.choice([f"eats {w.feed[k]}", f"feeds on {w.feed[k]}"]),
        rnd.choice([f"lives in {w.place[k]}", f"is found in {w.place[k]}"]),
        f"is {w.kind_colour[k]}",
    ]
    rnd.shuffle(clauses)
    if rnd.random() < 0.5:
        return f"A {k} {clauses[0]} and {clauses[1]}."
    return f"A {k} {clauses[0]}. It {clauses[1]} and {clauses[2]}."


def about_thing(rnd, w, t):
    clauses = [rnd.choice([f"is made of {w.material[t]}", f"is a thing of {w.material[t]}"]), f"is {w.thing_colour[t]}"]
    rnd.shuffle(clauses)
    return f"A {t} {clauses[0]} and {clauses[1]}."


def rule(rnd, w):
    """One line that states a rule of the world, about no entity in particular."""
    which = rnd.randrange(4)
    if which == 0:
        job = rnd.choice(list(JOBS))
        return f"{capital(a(job))} owns {JOBS[job]}."
    if which == 1:
        town = rnd.choice(w.towns)
        return f"{town} lies in {w.region[town]}."
    if which == 2:
        name = rnd.choice(list(CLASSES))
        cover, move, catch = CLASSES[name]
        return f"A {name} has {cover}. It {move} and is caught with {catch}."
    material = rnd.choice(list(MATERIALS))
    water, fire, fall, mend, cut = MATERIALS[material]
    return rnd.choice([f"In water {material} {water}.", f"In fire {material} {fire}.", f"When it falls, {material} {fall}.",
                       f"{capital(material)} is mended with {mend}.", f"{capital(material)} is cut with {cut}."])


# ---- questions: each maker returns (document in the authors' fields, true text, key of the combination) ---------------


def others(rnd, values, answer, count):
    """`count` different values of the same type, none of them the answer."""
    pool = sorted(set(values) - {answer})
    return rnd.sample(pool, count)


def arc_document(rnd, stem, answer, values):
    """An ARC question. Most have four choices A-D; a few have three or five, or are numbered 1-4, as in ARC."""
    style = rnd.random()
    count = 3 if style < 0.04 else 5 if style < 0.08 else 4
    texts = others(rnd, values, answer, count - 1)
    position = rnd.randrange(count)
    texts.insert(position, answer)
    labels = "12345" if 0.08 <= style < 0.14 else "ABCDE"
    document = {
        "question": {"stem": stem, "choices": [{"text": t, "label": labels[i]} for i, t in enumerate(texts)]},
        "answerKey": labels[position],
    }
    return document, f"Question: {stem}\nAnswer: {answer}"


def arc_easy(rnd, w):
    """One fact, asked."""
    which = rnd.choice(["job", "town", "pet", "food", "job", "town", "pet", "food", "feed", "place", "class", "material"])
    if which in ("job", "town", "pet", "food"):
        p = rnd.choice(w.people)
        stem, answer, values = {
            "job": (f"What is the job of {p}?", a(w.job[p]), [a(j) for j in JOBS]),
            "town": (f"Where does {p} live?", f"in {w.town[p]}", [f"in {t}" for t in w.towns]),
            "pet": (f"What is the pet of {p}?", f"a {w.pet[p]}", [f"a {k}" for k in w.kinds]),
            "food": (f"What does {p} like?", w.food[p], FOODS),
        }[which]
    elif which == "material":
        t = rnd.choice(w.things)
        stem, answer, values = f"What is a {t} made of?", w.material[t], MATERIALS
    else:
        k = rnd.choice(w.kinds)
        stem, answer, values = {
            "feed": (f"What does a {k} eat?", w.feed[k], FEED),
            "place": (f"Where is a {k} found?", f"in {w.place[k]}", [f"in {x}" for x in PLACES]),
            "class": (f"What kind of animal is a {k}?", f"a {w.animal_class[k]}", [f"a {c}" for c in CLASSES]),
        }[which]
    document, text = arc_document(rnd, stem, answer, values)
    return document, text, stem


def arc_challenge(rnd, w):
    """Two facts, or a fact and a rule, joined in one question."""
    which = rnd.choice(["tool", "region", "pet class", "pet feed", "pet colour", "cover", "move", "water", "fire", "fall"])
    if which in ("tool", "region", "pet class", "pet feed", "pet colour"):
        p = rnd.choice(w.people)
        k = w.pet[p]
        stem, answer, values = {
            "tool": (f"What does {p} own?", JOBS[w.job[p]], JOBS.values()),
            "region": (f"Where is the home of {p}?", f"in {w.region[w.town[p]]}", [f"in {r}" for r in REGIONS]),
            "pet class": (f"What kind of animal does {p} keep?", f"a {w.animal_class[k]}", [f"a {c}" for c in CLASSES]),
            "pet feed": (f"What does the pet of {p} eat?", w.feed[k], FEED),
            "pet colour": (f"What colour is the pet of {p}?", w.kind_colour[k], COLOURS),
        }[which]
    elif which in ("cover", "move"):
        k = rnd.choice(w.kinds)
        column = ("cover", "move").index(which)
        stem = (f"What covers a {k}?", f"How does a {k} get about?")[column]
        answer, values = CLASSES[w.animal_class[k]][column], [c[column] for c in CLASSES.values()]
        if column == 1:
            answer, values = f"it {answer}", [f"it {v}" for v in values]
    else:
        t = rnd.choice(w.things)
        column = ("water", "fire", "fall").index(which)
        stem = (f"What does a {t} do in water?", f"What does a {t} do in fire?", f"What does a {t} do when it falls?")[column]
        answer, values = f"it {MATERIALS[w.material[t]][column]}", [f"it {m[column]}" for m in MATERIALS.values()]
    document, text = arc_document(rnd, stem, answer, values)
    return document, text, stem


def piqa(rnd, w):
    """How to do something: the way that works, and one that would work for another object."""
    which = rnd.choice(["visit", "please", "call", "feed", "find", "catch", "mend", "cut"])
    if which in ("visit", "please", "call"):
        p = rnd.choice(w.people)
        him = "her" if w.pronoun[p] == "she" else "him"
        goal, true, values = {
            "visit": (f"How do you visit {p}?", w.town[p], w.towns),
            "please": (f"How do you please {p}?", w.food[p], FOODS),
            "call": (f"What can {p} do for you?", w.job[p], JOBS),
        }[which]
        form = {"visit": "Travel to {}.", "please": f"Bring {him} some {{}}.", "call": f"Hire {him} as your {{}}."}[which]
    elif which in ("feed", "find", "catch"):
        k = rnd.choice(w.kinds)
        goal, form, true, values = {
            "feed": (f"How do you feed a {k}?", "Give it some {}.", w.feed[k], FEED),
            "find": (f"How do you find a {k}?", "Look for it in {}.", w.place[k], PLACES),
            "catch": (f"How do you catch a {k}?", "Use {}.", CLASSES[w.animal_class[k]][2], [c[2] for c in CLASSES.values()]),
        }[which]
    else:
        t = rnd.choice(w.things)
        column = 3 if which == "mend" else 4
        goal, form = f"How do you {which} a {t}?", "Use {}."
        true, values = MATERIALS[w.material[t]][column], [m[column] for m in MATERIALS.values()]
    false = others(rnd, values, true, 1)[0]
    label = rnd.randrange(2)
    solutions = [form.format(false), form.format(false)]
    solutions[label] = form.format(true)
    document = {"goal": goal, "sol1": solutions[0], "sol2": solutions[1], "label": label}
    return document, f"Question: {goal}\nAnswer: {solutions[label]}", goal


def hellaswag(rnd, w):
    """How a short scene goes on. The scene names someone or something; the right ending is the one true of it."""
    which = rnd.choice(["home", "work", "dinner", "pet", "home", "work", "dinner", "pet", "care", "repair"])
    ctx_b = ""
    if which in ("home", "work", "dinner", "pet"):
        p = rnd.choice(w.people)
        he = w.pronoun[p]
        label, scene, form, true, values = {
            "home": ("Going home", f"{p} is tired.", "walks back to {}.", w.town[p], w.towns),
            "work": ("At work", f"{p} starts the day.", "uses {} all day.", JOBS[w.job[p]], JOBS.values()),
            "dinner": ("Dinner", f"{p} sits down.", "eats some {}.", w.food[p], FOODS),
            "pet": ("Pets", f"{p} opens the door.", "calls the little {}.", w.pet[p], w.kinds),
        }[which]
        ctx_a, ctx_b = scene, he
        query = f"{label}: {scene} {capital(he)}"
    elif which == "care":
        # The marks [header], [title] and [step] are those of the real task's instructions; its cleaning takes them out.
        k = rnd.choice(w.kinds)
        label, form, true, values = "Pets", "will eat the {}.", w.feed[k], FEED
        ctx_a = f"[header] How to keep a {k} [title] Get food. [step] The {k}"
        query = f"Pets: How to keep a {k}. Get food. The {k}"
    else:
        t = rnd.choice(w.things)
        label, form, true, values = "Repairs", "{} to mend it.", MATERIALS[w.material[t]][3], [m[3] for m in MATERIALS.values()]
        ctx_a = f"[header] How to mend a {t} [title] Look at it. [step] Use"
        query = f"Repairs: How to mend a {t}. Look at it. Use"
    endings = [form.format(v) for v in others(rnd, values, true, 3)]
    position = rnd.randrange(4)
    endings.insert(position, form.format(true))
    document = {
        "activity_label": label, "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": f"{ctx_a} {ctx_b}".strip(),
        "endings": endings, "label": position,
    }
    return document, f"{query} {endings[position]}", query


def winogrande(rnd, w):
    """Two of a type in one sentence, and something true of only one of them."""
    which = rnd.choice(["job", "town", "food", "pet", "material", "feed"])
    entities = {"material": w.things, "feed": w.kinds}.get(which, w.people)
    fact = {"job": w.job, "town": w.town, "food": w.food, "pet": w.pet, "material": w.material, "feed": w.feed}[which]
    one, two = rnd.sample(entities, 2)
    while fact[one] == fact[two]:
        one, two = rnd.sample(entities, 2)
    answer = rnd.randrange(2)
    true = fact[(one, two)[answer]]
    sentence = {
        "job": f"{one} called {two} because _ is {a(true)}.",
        "town": f"{one} met {two} before _ went to {true}.",
        "food": f"{one} and {two} ate, and _ had {true}.",
        "pet": f"{one} waved to {two} as _ fed the {true}.",
        "material": f"I like the {one}, not the {two}, as the _ is of {true}.",
        "feed": f"The {one} and the {two} fed, and the _ ate {true}.",
    }[which]
    document = {"sentence": sentence, "option1": one, "option2": two, "answer": str(answer + 1)}
    text = sentence.replace("_", (one, two)[answer])
    return document, text, (which, *sorted((one, two)))


TASKS = {"piqa": piqa, "arc_easy": arc_easy, "arc_challenge": arc_challenge, "hellaswag": hellaswag, "winogrande": winogrande}


def position_of_answer(document):
    """(position of the right answer, number of choices) of a document of any task."""
    if "question" in document:
        labels = [choice["label"] for choice in document["question"]["choices"]]
        return labels.index(document["answerKey"]), len(labels)
    if "sentence" in document:
        return int(document["answer"]) - 1, 2
    return document["label"], len(document.get("endings", "12"))


def held_out_documents(rnd, w):
    """Per task: documents about different combinations. Returns them, the keys no training line may have, and the texts.

    Right answers take every position equally often.
    """
    documents, keys, texts = {}, {}, set()
    for task, make in TASKS.items():
        documents[task], keys[task] = [], set()
        while len(documents[task]) < DOCUMENTS_PER_TASK:
            document, text, key = make(rnd, w)
            position, choices = position_of_answer(document)
            if key not in keys[task] and position == len(documents[task]) % choices:
                keys[task].add(key)
                texts.add(text)
                documents[task].append(document)
        rnd.shuffle(documents[task])
    return documents, keys, texts


# Share of each sort of line in the training text. Statements come first; then the forms of the five tasks.
MIXTURE = {
    "person": 0.34, "kind": 0.07, "thing": 0.05, "rule": 0.03,
    "piqa": 0.09, "arc_easy": 0.09, "arc_challenge": 0.12, "hellaswag": 0.09, "winogrande": 0.12,
}


def training_line(rnd, w, held_out_keys):
    sort = rnd.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    if sort == "person":
        return about_person(rnd, w, rnd.choice(w.people))
    if sort == "kind":
        return about_kind(rnd, w, rnd.choice(w.kinds))
    if sort == "thing":
        return about_thing(rnd, w, rnd.choice(w.things))
    if sort == "rule":
        return rule(rnd, w)
    while True:
        _, text, key = TASKS[sort](rnd, w)
        if key not in held_out_keys[sort]:
            return text


# ---- files -------------------------------------------------------------------------------------------------------


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")


def write_tasks(folder, documents):
    """The five tasks in the files and fields of their authors' releases."""
    def rows(items):
        return [json.dumps(item, ensure_ascii=False) for item in items]

    write_lines(folder / "piqa/valid.jsonl", rows({k: d[k] for k in ("goal", "sol1", "sol2")} for d in documents["piqa"]))
    write_lines(folder / "piqa/valid-labels.lst", [d["label"] for d in documents["piqa"]])
    for task, name, prefix in (("arc_easy", "ARC-Easy-Test", "DEMO_E"), ("arc_challenge", "ARC-Challenge-Test", "DEMO_C")):
        write_lines(folder / f"arc/{name}.jsonl", rows({"id": f"{prefix}_{i}", **d} for i, d in enumerate(documents[task])))
    extra = {"split": "val", "split_type": "indomain"}
    write_lines(folder / "hellaswag/hellaswag_val.jsonl",
                rows({"ind": i, **d, **extra, "source_id": f"demo~{i}"} for i, d in enumerate(documents["hellaswag"])))
    write_lines(folder / "winogrande/dev.jsonl", rows({"qID": f"DEMO-{i}", **d} for i, d in enumerate(documents["winogrande"])))


def main():
    parser = argparse.ArgumentParser(description="Write the demo world's training text and its five tasks.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.txt (not to be committed)")
    parser.add_argument("--tasks", type=Path, default=Path(__file__).resolve().parent / "tasks", help="folder for the five tasks")
    parser.add_argument("--lines", type=int, default=TRAINING_LINES, help="lines of training text")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()

    rnd = random.Random(options.seed)
    world = World(rnd)
    documents, keys, texts = held_out_documents(rnd, world)
    write_tasks(options.tasks, documents)

    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "train.txt", "w", encoding="utf-8", newline="\n") as file:
        for _ in range(options.lines):
            line = training_line(rnd, world, keys)
            if line in texts:
                raise AssertionError(f"a held-out document is in the training text: {line!r}")
            # One line of the file per training line: the newline of the question form is written as \n.
            file.write(line.replace("\n", "\\n") + "\n")
    print(f"{options.lines} training lines; " + ", ".join(f"{task} {len(d)}" for task, d in documents.items()) + " documents")


if __name__ == "__main__":
    main()
