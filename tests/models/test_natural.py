"""The corpus of natural facts: every kind can be told and asked, values stand where they are said to, and nothing held out is in training."""

import json
import random
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from lm2.models.tasks.natural import kinds, talk, values
from lm2.models.tasks.natural.answers import is_told, mentions, normal
from lm2.models.tasks.natural.descriptions import question_from_description
from lm2.models.tasks.natural.dialogues import dialogues, read_schema
from lm2.models.tasks.natural.errors import CorpusError
from lm2.models.tasks.natural.files import FOLDER
from lm2.models.tasks.natural.reader import read

ROOT = Path(__file__).parents[2]


def test_counts():
    assert len(kinds.kinds("train")) >= 400 and len(kinds.kinds("heldout")) >= 80
    assert len(talk.ordinary("train")) >= 300 and len(talk.ordinary("heldout")) >= 200 and len(talk.unknown()) >= 150
    assert len(talk.talks()) >= 30 and len(talk.unseen()) >= 60
    assert all(len(t.questions) == talk.FACTS for t in (*talk.talks(), *talk.unseen()))


@pytest.mark.parametrize("split", values.SPLITS)
def test_every_statement_and_question_renders(split):
    rng = random.Random(3)
    for kind in kinds.kinds(split).values():
        for said in kind.statements:
            filled = kinds.fill_slots(rng, kind, split)
            told = kinds.tell(rng, kind, said, filled, loose=True)
            assert told
            for t in told:
                check(t)
        if kind.corrections:
            t = kinds.corrected(rng, kind, kinds.fill_slots(rng, kind, split))
            check(t)
            assert t.earlier and not mentions(t.earlier, t.value), "the earlier message has another value"


def check(t):
    begin, end = t.span
    assert t.text[begin:end].lower() == t.value.lower(), t
    assert mentions(t.text, t.value) and is_told(t.reply, t.value), t
    assert len(t.questions) >= 3 and not re.search(r"[{}]", t.text + t.reply + "".join(t.questions)), t
    assert "  " not in t.text and not re.search(r"\ba (?=[aeio])", t.text.lower().split(t.value.lower())[0][-3:] + t.value.lower()[:1]), t


def test_no_question_names_its_value():
    rng = random.Random(1)
    for split in values.SPLITS:
        for name in kinds.kinds(split):
            for _ in range(3):
                for t in kinds.draw_all(rng, split, name):
                    assert not any(mentions(q, t.value) for q in t.questions), t


def test_no_value_lies_inside_another():
    """`Kingdom` beside `Amber Kingdom`: an answer with the one would have the other."""
    rng = random.Random(2)
    for kind in (k for split in values.SPLITS for k in kinds.kinds(split).values() if k.slots["x"] in ("title", "venue", "object", "spot")):
        for _ in range(20):
            filled = kinds.fill_slots(rng, kind, "train")
            assert not mentions(filled["old"], filled["x"]) and not mentions(filled["x"], filled["old"])


def test_a_function_of_the_seed():
    def some(seed):
        rng = random.Random(seed)
        return [kinds.draw(rng, "train") for _ in range(40)]

    assert some(1) == some(1) != some(2)


def drawn(split, n=1500, seed=0):
    rng = random.Random(seed)
    return [kinds.draw(rng, split) for _ in range(n)]


def closed(told, split):
    """Whether a fact's value is of a type that is not divided: a day, a month, a small number."""
    of = kinds.kinds(split)[told.kind].slots[told.key[1]]
    return of in values.CLOSED or (isinstance(of, str) and re.fullmatch(r"n\d+-\d+|plus\d+-\d+", of) is not None)


def test_values_are_divided():
    train, held = (
        {normal(t.value) for t in drawn(split) if not closed(t, split) and not re.fullmatch(r"[\d.]+", normal(t.value))}
        for split in values.SPLITS
    )  # small numbers are too few to be divided
    assert not train & held, train & held
    assert len(train) > 700 and len(held) > 500
    own = [
        {normal(v) for kind in kinds.kinds(split).values() for of in kind.slots.values() if not isinstance(of, str) for v in of}
        for split in values.SPLITS
    ]
    pools = {normal(word) for name in values.lists() for word in values.pool(name, "train") if name not in values.CLOSED}
    kept = {normal(word) for name in values.lists() for word in values.pool(name, "heldout") if name not in values.CLOSED}
    asked = {normal(v) for k in kinds.kinds("train").values() for s in k.asked if not isinstance(k.slots[s], str) for v in k.slots[s]}
    assert not asked & kept
    told = {normal(a.value) for t in talk.talks() for a in t.questions}
    words = {v for v in (own[1] | told) & (own[0] | pools) if not re.fullmatch(r"[\d.]+", v)}
    assert words <= IN_OTHER_ROLES, words


IN_OTHER_ROLES = {"sheep", "wheel", "hot air balloon", "fridge"}  # of questions and parts in training, never what is asked for


@pytest.mark.parametrize("name", sorted({*values._MAKERS, *values.lists(), "n2-60", "money5-300", "cents1-20", "plus2-90"}))
def test_types_have_values_in_both_splits(name):
    rng = random.Random(name)
    many = {split: {values.draw(name, rng, split) for _ in range(60)} for split in values.SPLITS}
    assert all(v == v.strip() and v for found in many.values() for v in found)
    if name in values._MAKERS:
        assert len(many["train"]) >= 25 and not {normal(v) for v in many["train"]} & {normal(v) for v in many["heldout"]}


def grams(text, n):
    words = re.findall(r"[a-z'_]+", re.sub(r"\{[^}]*\}", " _ ", text.lower()))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_phrasings_are_divided():
    told = [s for kind in kinds.kinds("train").values() for s in (*kind.statements, *kind.corrections)]
    seen = {n: set().union(*(grams(s, n) for s in told)) for n in (4, 6)}
    held = [s for kind in kinds.kinds("heldout").values() for s in (*kind.statements, *kind.corrections)]
    for name, messages in (("kinds", held), ("talks", [m for t in talk.talks() for m in t.messages]), ("unseen", [m for t in talk.unseen() for m in t.messages])):
        for n, most in ((4, 0.02), (6, 0.0)):
            mine = [g for s in messages for g in grams(s, n)]
            assert sum(g in seen[n] for g in mine) / len(mine) <= most, (name, n)
    some = grams(told[100], 4)
    assert some <= seen[4], "the negative control: what training says is seen"


def test_ordinary_talk_is_divided():
    def bare(text):
        return re.sub(r"\W+", " ", text.lower()).strip()

    train, held = ({bare(t) for t in talk.ordinary(split)} for split in values.SPLITS)
    asked = {bare(q) for split in values.SPLITS for k in kinds.kinds(split).values() for qs in k.questions.values() for q in qs}
    assert not train & held and not (train | held) & asked
    seen = [grams(t, 3) for t in train]
    similar = [h for h in held if any(len(grams(h, 3) & g) > 0.5 * len(grams(h, 3)) > 1 for g in seen)]
    assert len(similar) <= 8, similar


def test_statements_do_not_start_alike():
    for split in values.SPLITS:
        starts = [" ".join(re.sub(r"\{[^}]*\}", "_", s.lower()).split()[:2]) for k in kinds.kinds(split).values() for s in k.statements]
        commonest = max(set(starts) - {"_ _"}, key=starts.count)
        assert starts.count(commonest) < 0.03 * len(starts), commonest


def test_two_facts_in_one_message_and_talk_around_a_fact():
    rng = random.Random(0)
    plain = [t for t in drawn("train", 200) if not t.earlier]
    for a, b in zip(plain[::2], plain[1::2], strict=False):
        text = kinds.together(rng, [a, b])
        assert mentions(text, a.value) and mentions(text, b.value)
        said = kinds.chatty(rng, a, "train")
        assert said.text[slice(*said.span)].lower() == a.value.lower() and a.text in said.text
        asked = kinds.ask(rng, a)
        assert any(q in asked for q in a.questions)
    corrected = next(t for t in drawn("train", 400) if t.earlier)
    with pytest.raises(ValueError, match="its own message"):
        kinds.together(rng, [plain[0], corrected])


@pytest.mark.parametrize(
    ("reply", "value", "right"),
    [
        ("You keep 17 hens.", "seventeen", True),
        ("You keep seventeen hens.", "17", True),
        ("You keep seventy hens.", "seventeen", False),
        ("You keep 170 hens.", "17", False),
        ("At 9:30.", "half past nine", True),
        ("At half past nine.", "9.30", True),
        ("At half past ten.", "9:30", False),
        ("At 9.", "9:30", False),
        ("At quarter to six.", "17:45", True),
        ("At 5:45 pm", "17:45", True),
        ("At 5:45 am", "17:45", False),
        ("At 10 o'clock", "ten", True),
        ("It was £1,200.", "1200 quid", True),
        ("It was $1,200.", "1200 quid", False),
        ("It was 1,250 pounds.", "£1,200", False),
        ("March 3rd", "the 3rd of March", True),
        ("on the third of March", "3 March", True),
        ("March 13th", "March 3", False),
        ("It is behind the kettle.", "behind the kettle", True),
        ("It is under the kettle.", "behind the kettle", False),
        ("a Kettlewell", "kettle", False),
        ("The Copper Heron", "the Copper Heron", True),
        ("It's at Copper Heron.", "The Copper Heron", True),
        ("two hundred and five", "205", True),
        ("Halvard has them", "Halvard", True),
        ("Halvardson has them", "Halvard", False),
        ("O’Brien", "O'Brien", True),
        ("version 4.2.1", "4.2", False),
        ("the code is **4471**", "4471", True),
        ("the code is 44719", "4471", False),
        ("twenty-one", "21", True),
        ("twenty", "21", False),
        ("a dark teal", "teal", True),
        ("", "teal", False),
    ],
)
def test_equal_forms_of_a_value(reply, value, right):
    assert is_told(reply, value) is right


def test_other_values_count_against_an_answer():
    assert is_told("Nine, not eight.", "nine") and not is_told("Nine or eight.", "nine", others=("eight",))
    assert is_told("the green tin", "green tin", others=("tin",)) and is_told("27", "bright orange", accepted=("27",))


GOOD = "[hens] x: n3-60\n" + "".join(f"{t} {{x}} hens\n" for t in ("We keep", "I own", "There are", "Count them,", "Now it's"))
GOOD += "? How many hens?\n? how many do I keep\n? What number of hens?\n= You keep {x} hens.\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("x: n3-60", "x: n3"), "unknown type of value, 'n3'"),
        (("x: n3-60", "x n3-60"), "are no slots"),
        (("x: n3-60", "x: (one)"), "two values at least"),
        (("x: n3-60", "x: n3-60; y: town"), "no statement uses {y}"),
        (("I own {x}", "I own {z}"), "{z} in 'I own {z} hens' is no slot"),
        (("I own {x}", "I own {x}{"), "a brace stands alone"),
        (("I own {x}", "I own many hens\nI own {x}"), "nothing is told"),
        (("I own {x}", "I own {x} and {x}"), "{x} stands twice"),
        (("We keep {x} hens\nI own {x} hens\n", ""), "3 statements tell {x}, fewer than 4"),
        (("? How many hens?", "? Do I keep {x}?"), "has the value in it"),
        (("? How many hens?\n", ""), "fewer than 3"),
        (("? How many", "?How many"), "a blank may be missing"),
        (("= You keep {x} hens.\n", ""), "needs an answer"),
        (("= You keep {x} hens.\n", "= You keep {x} hens.\n= And {x}.\n"), "a second answer"),
        (("[hens] x: n3-60\n", "[hens] x: n3-60; name: person\n{name} has {x}\n"), None),
        (("? How many hens?", "? How many hens has {name}?"), "{name} in"),
        (("[hens]", "I keep\n[hens]"), "before the first"),
        (("I own {x} hens\n", "We keep {x} hens\n"), "a statement stands twice"),
        (("= You", "~ no, they moved\n= You"), "the correction"),
    ],
)
def test_a_file_of_kinds_is_checked(tmp_path, change, message):
    file = tmp_path / "train_x.txt"
    file.write_text(GOOD.replace(*change), encoding="utf-8")
    assert GOOD.replace(*change) != GOOD
    if message is None:
        assert list(read([file])) == ["hens"]
        return
    with pytest.raises(CorpusError, match=re.escape(message)) as refused:
        read([file])
    assert "train_x.txt line" in str(refused.value) and "\n" not in str(refused.value)


def test_kinds_of_the_same_name_or_words_are_refused(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text(GOOD, encoding="utf-8")
    b.write_text(GOOD, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"b.txt line 1, \[hens\]: kind 'hens' is there already"):
        read([a, b])
    b.write_text(GOOD.replace("[hens]", "[ducks]"), encoding="utf-8")
    with pytest.raises(CorpusError, match="is said by 'hens' already"):
        read([a, b])


def test_what_there_is_not_is_refused_by_name():
    rng = random.Random(0)
    for call in (lambda: kinds.kinds("test"), lambda: values.draw("person", rng, "test"), lambda: talk.ordinary("test")):
        with pytest.raises(CorpusError, match="'test'"):
            call()
    with pytest.raises(CorpusError, match="'unicorns'"):
        kinds.draw(rng, "train", "unicorns")
    with pytest.raises(CorpusError, match="'unicorns'"):
        values.draw("unicorns", rng, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "before the first"),
        ("[a]\n? Where? = there\n", "before the first message"),
        ("[a]\nit is here\n? Where? = there\n", "was not told"),
        ("[a]\nit is here\n? Is it here? = here\n", "names its value"),
        ("[a]\nit is here\n? Where? here\n", "must be `question = value"),
        ("[a]\nit is here\n? Where? = here\n", "1 questions, not 6"),
    ],
)
def test_a_file_of_conversations_is_checked(tmp_path, text, message):
    file = tmp_path / "talks.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=re.escape(message)):
        talk.read_talks(file)


@pytest.mark.parametrize("of", [talk.talks, talk.unseen])
def test_conversations_are_right_by_their_own_words(of):
    for conversation in of():
        for message, asked in zip(conversation.messages, conversation.asked, strict=True):
            for question in asked:
                assert question.is_right(f"It is {question.value}.") and not question.is_right("I'm sorry, I don't know.")
                assert not question.is_right(question.question), question
                assert not any(question.is_right(wrong) for wrong in question.wrong), message
                assert is_told(message, question.value, question.accepted), "asked behind the message that tells it"


def test_unseen_conversations_are_not_those_that_were_tuned_on():
    def bare(text):
        return re.sub(r"\W+", " ", text.lower()).strip()

    known, unseen = talk.talks(), talk.unseen()
    files = [file for file in FOLDER.glob("*train*.txt")] + [FOLDER / "unknown.txt", FOLDER / "heldout_talks.txt"]
    trained = {bare(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()} - {""}
    assert len(files) > 50 and {bare(m) for t in known for m in t.messages} < trained, "the control: what a file has is found"
    assert not {bare(m) for t in unseen for m in t.messages} & trained
    asked, before = ({(bare(q.question), normal(q.value)) for t in talks for q in t.questions} for talks in (unseen, known))
    assert len(asked) == 360 and not asked & before
    assert not {t.title.lower() for t in unseen} & {t.title.lower() for t in known}


def test_messages_of_unseen_conversations_are_like_none():
    """No more than six in ten of a message's three words in a row stand together in any line that was tuned on."""
    lines = [line for file in (*FOLDER.glob("talks_train_*.txt"), FOLDER / "heldout_talks.txt") for line in file.read_text(encoding="utf-8").splitlines()]
    within: dict[tuple[str, ...], set[int]] = {}
    for number, line in enumerate(lines):
        for gram in grams(line, 3):
            within.setdefault(gram, set()).add(number)

    def most(message):
        mine = grams(message, 3)
        shared = Counter(number for gram in mine for number in within.get(gram, ()))
        return max(shared.values(), default=0) / max(len(mine), 1)

    messages = [m for t in talk.unseen() for m in t.messages]
    assert all(most(m) <= 0.6 for m in messages), [m for m in messages if most(m) > 0.6]
    assert most("x " + talk.talks()[0].messages[0]) > 0.6, "the control: a line that was tuned on, with a word before"


@pytest.mark.parametrize(
    ("description", "question"),
    [
        ("City where the apartment is located", "In which city is the apartment located?"),
        ("City where bus is leaving from", "Which city is the bus leaving from?"),
        ("Boolean flag indicating if the hotel has wifi", "Does the hotel have wifi?"),
        ("Boolean flag whether ride is shared with other passengers", "Is the ride shared with other passengers?"),
        ("Boolean flag indicating if pets are allowed", "Are pets allowed?"),
        ("Whether the booking is refundable or not", "Is the booking refundable?"),
        ("Number of travelers for journey", "How many travelers are there for the journey?"),
        ("Number of the movie tickets to be purchased", "How many movie tickets are to be purchased?"),
        ("Category to which rental car belongs", "To which category does the rental car belong?"),
        ("Year in which the song was released", "In which year was the song released?"),
        ("Album the song belongs to", "Which album does the song belong to?"),
        ("Artist who performed the song", "Which artist performed the song?"),
        ("Time when the event is scheduled to start", "When is the event scheduled to start?"),
        ("Start date for the reservation or to find the house", "What is the start date for the reservation?"),
        ("Subcategory of event, either a music genre or sport name", "What is the subcategory of the event?"),
        ("Type of fare for the booking", "What type of fare is it for the booking?"),
        ("The amount of money to transfer", "What is the amount of money to transfer?"),
        ("Day on which the class begins", "On which day does the class begin?"),
        ("Whether smoking is allowed", "Is smoking allowed?"),
    ],
)
def test_question_from_description(description, question):
    assert question_from_description(description) == question


def folder(tmp_path, record=None, schema=None, questions=None):
    schema = (
        {"Trains_1.to": "City where train is going to", "Homes_1.area": "City where the apartment is located"} if schema is None else schema
    )
    record = record or {"id": "1", "services": ["Trains_1"], "turns": TURNS}
    (tmp_path / "x_schema.json").write_text(json.dumps(schema), encoding="utf-8")
    (tmp_path / "x_slots.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    if questions is not None:
        (tmp_path / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
    return tmp_path


TURNS = [
    {"role": "user", "content": "A train to Ghent please.", "slots": [["Trains_1.to", 11, 16]]},
    {"role": "assistant", "content": "To Ghent?", "slots": [["Trains_1.to", 3, 8]]},
]


def test_dialogues_are_read(tmp_path):
    (dialogue,) = dialogues(folder(tmp_path))
    (value,) = dialogue.values
    assert (value.text, value.turn, value.slot, value.service, dialogue.split) == ("Ghent", 0, "Trains_1.to", "Trains_1", "train")
    assert value.questions == ("Which city is the train going to?",) and dialogue.turns[1] == ("assistant", "To Ghent?")
    (dialogue,) = dialogues(folder(tmp_path, questions={"Trains_1.to": ["Where to?", "to Ghent or where?"]}))
    assert dialogue.values[0].questions == ("Where to?", "Which city is the train going to?"), "a question that names the value is left out"
    (dialogue,) = dialogues(folder(tmp_path, questions={"held_out": ["Trains_1"], "questions": {"Trains_1.to": "Where to?"}}))
    assert dialogue.split == "heldout" and dialogue.values[0].questions == ("Which city is the train going to?",)


def test_a_line_ends_at_a_line_end_only(tmp_path):
    """U+2028 is a character of a message, wherever str.splitlines would cut it; a byte-order mark is none."""
    home = folder(tmp_path)
    turns = [{"role": "user", "content": "To Ghent\u2028please", "slots": [["Trains_1.to", 3, 8]]}]
    text = json.dumps({"id": "3", "services": ["Trains_1"], "turns": turns}, ensure_ascii=False)
    (home / "x_slots.jsonl").write_text("\ufeff" + text + "\r\n", encoding="utf-8")
    (dialogue,) = dialogues(home)
    assert dialogue.turns[0][1] == "To Ghent\u2028please" and dialogue.values[0].text == "Ghent"


def test_whole_services_are_held_out(tmp_path):
    schema = read_schema(folder(tmp_path))
    assert len(schema.held_out) >= 5 and not {slot for slot in schema.questions if slot.split(".")[0] in schema.held_out}
    assert all(len(asked) >= 3 for asked in schema.questions.values())
    mixed = {"id": "2", "services": ["Trains_1", "Homes_1"], "turns": TURNS}
    assert [d.split for d in dialogues(folder(tmp_path, mixed))] == ["heldout"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"services": ["Trains_1"], "turns": TURNS}, "id must be a text"),
        ({"id": "1", "services": [], "turns": TURNS}, "services must be a list"),
        ({"id": "1", "services": ["Trains_1"], "turns": []}, "turns must be a list"),
        ({"id": "1", "services": ["Trains_1"], "turns": [{"role": "bot", "content": "x"}]}, "turn 0: it must have a role"),
        ({"id": "1", "services": ["Trains_1"], "turns": [{**TURNS[0], "slots": [["Trains_1.from", 0, 1]]}]}, "no slot 'Trains_1.from'"),
        ({"id": "1", "services": ["Trains_1"], "turns": [{**TURNS[0], "slots": [["Trains_1.to", 11, 99]]}]}, "Trains_1.to is at 11 to 99"),
        ({"id": "1", "services": ["Trains_1"], "turns": [{**TURNS[0], "slots": [["Trains_1.to", True, 3]]}]}, "must be [name, begin, end]"),
        ({"id": "1", "services": ["Homes_1"], "turns": TURNS}, "of none of the dialogue's services"),
    ],
)
def test_dialogues_are_checked(tmp_path, record, message):
    with pytest.raises(CorpusError, match=re.escape(message)) as refused:
        list(dialogues(folder(tmp_path, record)))
    assert "x_slots.jsonl line 1" in str(refused.value)


def test_a_folder_of_dialogues_is_checked(tmp_path):
    with pytest.raises(CorpusError, match=r"no \*slots.jsonl"):
        list(dialogues(tmp_path))
    home = folder(tmp_path)
    (home / "x_slots.jsonl").write_text('{"id"\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"x_slots.jsonl line 1 is not JSON"):
        list(dialogues(home))
    with pytest.raises(CorpusError, match="no slot of"):
        list(dialogues(folder(tmp_path, questions={"Trains_1.nothing": "What?"})))
    with pytest.raises(CorpusError, match="a question or a list"):
        list(dialogues(folder(tmp_path, questions={"Trains_1.to": []})))
    (home / "questions.json").unlink()
    with pytest.raises(CorpusError, match="with a description"):
        list(dialogues(folder(tmp_path, schema={"Trains_1": "x"})))
    (home / "x_schema.json").unlink()
    with pytest.raises(CorpusError, match=r"0 files \*schema.json"):
        list(dialogues(home))


def test_a_wheel_carries_the_corpus():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "lm2.models.tasks.natural" in setup["packages"]
    patterns = setup["package-data"]["lm2.models.tasks.natural"]
    carried = {file for pattern in patterns for file in FOLDER.parent.glob(pattern)}
    assert {file for file in FOLDER.iterdir()} <= carried


def test_a_wheel_carries_every_package():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    here = {"lm2." + ".".join(file.parent.relative_to(ROOT).parts) for part in ("models", "runtime", "export", "lm2_mlx") for file in (ROOT / part).rglob("__init__.py")}
    assert here | {"lm2"} == set(setup["packages"])
