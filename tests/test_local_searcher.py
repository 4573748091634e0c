"""The searcher on one machine against brute force, and generations that change under it."""

import csv
import shutil
import threading

import numpy as np
import pytest
import torch

import serve.finding
import serve.searchers.local
from configs.artifacts import atomic_write
from configs.generations import current_generation
from crawl.tags import normalise_tags
from features.tag_vectors import vector_of_tag
from features.word_tables import CARRIED, CarriedWords
from serve.pictures import encode
from serve.query import QueryError
from serve.searchers.base import NoSuchImage, Question
from serve.searchers.current import CurrentSearcher, open_searchers
from serve.searchers.local import LocalSearcher, spelled_like
from tests.synthetic import AWKWARD, NO_VECTOR, PHRASE, TAGS, copy_line, records
from tests.test_publish import index_again, published
from train.calibration import open_calibration
from train.towers import embed_tags, load_towers

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDS = {record.image_id: record for record in records()}


@pytest.fixture(scope="module")
def directory(trained):
    return current_generation(trained.artifact("served") / "small", make="")


@pytest.fixture(scope="module")
def searcher(trained, directory):
    return LocalSearcher(directory, trained.artifact("collection"), CarriedWords())


def carrying(*tags):
    return {name for name, record in RECORDS.items() if set(tags) <= set(normalise_tags(record.tags))}


def brute_force(directory, *tags):
    """Rank the images that carry all tags by the mean of their cosines; known tags only."""
    ids = np.loadtxt(directory / "image_ids.txt", dtype=str)
    names = (directory / "tags.txt").read_text(encoding="utf-8").splitlines()
    rows = np.flatnonzero([name in carrying(*tags) for name in ids])
    wanted = np.load(directory / "tag_embeddings.npy")[[names.index(tag) for tag in tags]].mean(axis=0)
    scores = np.load(directory / "embeddings.npy")[rows].astype(np.float32) @ wanted
    return [str(ids[rows[at]]) for at in np.lexsort((rows, -scores))]


def asked(searcher, text, offset=0, limit=1000):
    return searcher.search(Question(text, offset=offset, limit=limit))


def matches(answer):
    return [hit for hit in answer.hits if not hit.guess]


def ids_of(answer):
    return [hit.image_id for hit in matches(answer)]


@pytest.mark.parametrize("tag", TAGS)
def test_one_tag_is_ranked_as_brute_force_ranks_it(searcher, directory, tag):
    answer = asked(searcher, tag, 0, 1000)
    assert ids_of(answer) == brute_force(directory, tag)
    assert answer.num_matches == answer.num_shown == len(matches(answer))


@pytest.mark.parametrize("tags", [("dog", "cat"), ("river", "boat"), (PHRASE, "car")])
def test_several_tags_are_ranked_as_brute_force_ranks_their_images(searcher, directory, tags):
    answer = asked(searcher, " ".join(tags), 0, 1000)
    assert [count.tag for count in answer.tags] == list(tags)
    assert ids_of(answer) == brute_force(directory, *tags)


@pytest.mark.parametrize(
    "text", ["dog cat horse", f"dog cat {PHRASE}", "apple bridge river guitar", f"{NO_VECTOR} dog"]
)
def test_several_tags_find_the_images_that_carry_all_of_them(searcher, text):
    answer = asked(searcher, text, 0, 1000)
    assert set(ids_of(answer)) == carrying(*(count.tag for count in answer.tags))
    assert answer.num_matches == answer.num_shown == len(matches(answer))


@pytest.mark.parametrize("text", ["dog", "dog cat", PHRASE])
def test_scores_fall_and_are_cosines(searcher, text):
    scores = [hit.score for hit in matches(asked(searcher, text, 0, 1000))]
    assert (np.diff(scores) <= 1e-6).all()
    assert max(np.abs(scores)) <= 1.001


@pytest.mark.parametrize("text", ["dog", "dog cat", NO_VECTOR, "dog OR cat", "-dog", "puppy", "dog puppy", "c*"])
def test_pages_put_together_are_the_whole_list(trained, directory, text):
    fresh = LocalSearcher(directory, trained.artifact("collection"), CarriedWords())
    pages = [asked(fresh, text, offset, 7).hits for offset in range(0, 300, 7)]
    whole = asked(LocalSearcher(directory, trained.artifact("collection"), CarriedWords()), text, 0, 1000)
    assert sum(pages, ()) == whole.hits
    assert len(whole.hits) == whole.num_shown + whole.num_guesses


@pytest.mark.parametrize("text", ["dog", "dog cat"])
def test_a_page_beyond_the_end_is_empty(searcher, text):
    answer = asked(searcher, text, 10_000_000, 40)
    assert answer.hits == ()
    assert answer.num_matches > 0


def test_a_tag_without_a_vector_is_searched_by_its_images_in_ascending_order(searcher):
    answer = asked(searcher, NO_VECTOR, 0, 1000)
    assert ids_of(answer) == sorted(carrying(NO_VECTOR))
    assert {hit.score for hit in answer.hits} == {0.0}
    assert answer.num_guesses == 0


def test_a_tag_without_a_vector_adds_nothing_to_the_score(searcher):
    both, one = asked(searcher, f"dog {NO_VECTOR}", 0, 1000), asked(searcher, "dog", 0, 1000)
    kept = [image_id for image_id in ids_of(one) if image_id in carrying(NO_VECTOR)]
    assert ids_of(both) == kept


def brute_scores(directory, *tags):
    """The mean of tags' cosines with all images, by image_id."""
    ids = np.loadtxt(directory / "image_ids.txt", dtype=str)
    names = (directory / "tags.txt").read_text(encoding="utf-8").splitlines()
    wanted = np.load(directory / "tag_embeddings.npy")[[names.index(tag) for tag in tags]].mean(axis=0)
    scores = np.load(directory / "embeddings.npy").astype(np.float32) @ wanted
    return dict(zip(map(str, ids), scores.tolist(), strict=True))


def best_first(scores, ids):
    return sorted(ids, key=lambda image_id: (-scores[image_id], image_id))


def test_of_tags_with_or_an_image_scores_by_the_best_that_it_carries(searcher, directory):
    scores = {tag: brute_scores(directory, tag) for tag in ("dog", "cat")}
    best = {name: max([scores[tag][name] for tag in scores if name in carrying(tag)], default=0) for name in RECORDS}
    answer = asked(searcher, "dog OR cat")
    assert ids_of(answer) == best_first(best, carrying("dog") | carrying("cat"))


def test_what_is_there_only_for_what_it_lacks_comes_last(searcher):
    hits = matches(asked(searcher, "dog OR -cat"))
    expected = carrying("dog") | (set(RECORDS) - carrying("cat"))
    assert {hit.image_id for hit in hits} == expected
    assert [hit.image_id for hit in hits if hit.score == -1] == sorted(expected - carrying("dog"))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_prefix_of_many_tags_scores_as_one_of_few(trained, directory, monkeypatch):
    answers = []
    for many in (8, 0):
        monkeypatch.setattr(serve.finding, "MANY_TAGS", many)
        answers.append(asked(LocalSearcher(directory, trained.artifact("collection"), None), "c*").hits)
    assert answers[0] == answers[1]


def test_what_is_left_out_is_neither_a_match_nor_a_guess(searcher, directory):
    answer = asked(searcher, "dog -cat")
    shown = {hit.image_id for hit in answer.hits}
    assert ids_of(answer) == best_first(brute_scores(directory, "dog"), carrying("dog") - carrying("cat"))
    assert not shown & carrying("cat")
    assert shown == set(RECORDS) - carrying("cat")


def test_a_query_that_only_leaves_out_finds_the_rest_in_ascending_order(searcher):
    answer = asked(searcher, "-dog")
    assert [hit.image_id for hit in answer.hits] == sorted(set(RECORDS) - carrying("dog"))
    assert answer.num_guesses == 0


def test_a_prefix_finds_every_tag_that_begins_so(searcher):
    assert set(ids_of(asked(searcher, "c*"))) == set().union(*(carrying(tag) for tag in TAGS if tag[0] == "c"))


@pytest.mark.parametrize("tags", [("dog",), ("dog", "cat"), ("river", "boat", "car")])
def test_guesses_are_all_other_images_by_their_scores(searcher, directory, tags):
    answer = asked(searcher, " ".join(tags))
    guesses = [hit.image_id for hit in answer.hits if hit.guess]
    scores = brute_scores(directory, *tags)
    assert [hit.guess for hit in answer.hits] == sorted(hit.guess for hit in answer.hits)
    assert guesses == best_first(scores, set(RECORDS) - carrying(*tags))
    assert answer.num_guesses == len(guesses)


def test_a_word_that_is_no_tag_ranks_everything_by_its_word_vector(trained, searcher, directory):
    towers = load_towers(trained.run("small") / "towers.safetensors")
    vector = vector_of_tag("puppy", CarriedWords())
    wanted = embed_tags(towers, ["puppy"], torch.from_numpy(vector[None]))[0].numpy()
    scores = np.load(directory / "embeddings.npy").astype(np.float32) @ wanted
    answer = asked(searcher, "puppy")
    assert (answer.num_matches, answer.num_guesses) == (0, len(RECORDS))
    assert answer.unknown[0].ranked
    assert [hit.score for hit in answer.hits] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-3)


def test_a_word_of_which_nothing_is_known_ranks_nothing(searcher):
    answer = asked(searcher, "qqqq wwww")
    assert answer.hits == ()
    assert [near.ranked for near in answer.unknown] == [False, False]


def test_a_word_that_is_no_tag_leaves_the_other_side_of_or(searcher):
    answer = asked(searcher, "dog OR wxyz")
    assert set(ids_of(answer)) == carrying("dog")
    assert [near.word for near in answer.unknown] == ["wxyz"]


def test_clauses_count_and_an_empty_result_has_one_to_blame(searcher):
    answer = asked(searcher, "dog -cat -dog")
    assert [clause.text for clause in answer.clauses] == ["dog", "-cat", "-dog"]
    assert [clause.num_images for clause in answer.clauses] == [
        len(carrying("dog")), len(RECORDS) - len(carrying("cat")), len(RECORDS) - len(carrying("dog"))
    ]  # fmt: skip
    assert answer.num_matches == 0
    blamed = next(clause for clause in answer.clauses if clause.text == answer.blame)
    assert asked(searcher, blamed.without).num_matches > 0


def having(**values):
    return {name for name, record in RECORDS.items() if all(getattr(record, key) == values[key] for key in values)}


@pytest.mark.parametrize("text", ["dog", "dog OR cat", "-dog", "puppy"])
def test_filters_hold_for_matches_and_guesses(searcher, text):
    whole = asked(searcher, text)
    answer = searcher.search(Question(text, kinds=("photo",), limit=1000))
    expected = [hit.image_id for hit in whole.hits if hit.image_id in having(kind="photo")]
    assert [hit.image_id for hit in answer.hits] == expected
    assert answer.num_guesses == sum(hit.guess for hit in answer.hits)
    assert answer.kinds == whole.kinds


def test_filters_are_offered_with_their_counts(searcher):
    answer = asked(searcher, "dog")
    counts = {kind: len(having(kind=kind) & carrying("dog")) for kind in ("photo", "drawing")}
    assert {each.tag: each.num_images for each in answer.kinds} == counts
    assert [(each.tag, each.num_images) for each in answer.licences] == [("CC0", len(carrying("dog")))]


def test_a_filter_for_what_no_image_has_leaves_nothing_and_blames_no_clause(searcher):
    answer = searcher.search(Question("dog", licences=("GPL",)))
    assert (answer.num_matches, answer.num_guesses, answer.hits, answer.blame) == (0, 0, (), "")


def test_newest_first_is_the_order_of_coming_where_no_image_has_a_date(searcher):
    answer = searcher.search(Question("dog", sort="newest", limit=1000))
    came = [record.image_id for record in records() if "dog" in record.tags]
    assert ids_of(answer) == came[::-1]
    by_score = {hit.image_id: hit.score for hit in asked(searcher, "dog").hits}
    assert all(by_score[hit.image_id] == hit.score for hit in answer.hits)


@pytest.mark.parametrize("text", ["dog", "dog OR cat", "puppy"])
@pytest.mark.parametrize("sort", ["score", "newest"])
def test_the_cut_off_leaves_what_is_above_the_score_that_promises_so_much(trained, searcher, text, sort):
    calibration = open_calibration(trained, "small")
    least = calibration.threshold(0.3)
    whole = searcher.search(Question(text, sort=sort, limit=1000))
    answer = searcher.search(Question(text, sort=sort, cutoff=0.3, limit=1000))
    assert [hit.image_id for hit in answer.hits] == [hit.image_id for hit in whole.hits if hit.score >= least]
    assert 0 < len(answer.hits) < len(whole.hits)
    assert answer.num_matches == whole.num_matches
    assert len(answer.hits) == answer.num_shown + answer.num_guesses


def test_a_cut_off_that_no_score_promises_leaves_nothing(trained, searcher):
    assert open_calibration(trained, "small").threshold(1.1) is None
    assert searcher.search(Question("dog", cutoff=1.1)).hits == ()


def test_hits_have_the_probability_of_their_score(trained, searcher):
    calibration = open_calibration(trained, "small")
    for hit in asked(searcher, "dog").hits:
        assert hit.probability == calibration.probability_of(np.array([hit.score]))[0]


def nearest(directory, image_id):
    ids = [str(name) for name in np.loadtxt(directory / "image_ids.txt", dtype=str)]
    embeddings = np.load(directory / "embeddings.npy").astype(np.float32)
    scores = dict(zip(ids, (embeddings @ embeddings[ids.index(image_id)]).tolist(), strict=True))
    return best_first(scores, set(ids) - {image_id})


def test_more_like_a_stored_picture_are_its_neighbours_without_itself(searcher, directory):
    image_id = sorted(RECORDS)[7]
    answer = searcher.search(Question(like=image_id, limit=1000))
    assert [hit.image_id for hit in answer.hits] == nearest(directory, image_id)
    assert all(hit.guess and hit.probability is None for hit in answer.hits)
    assert answer.num_guesses == len(RECORDS) - 1


def test_with_a_text_the_matches_come_first_by_how_like_they_are(searcher, directory):
    image_id = sorted(set(RECORDS) - carrying("dog"))[7]
    answer = searcher.search(Question("dog", like=image_id, limit=1000))
    assert ids_of(answer) == [each for each in nearest(directory, image_id) if each in carrying("dog")]


def test_an_uploaded_picture_finds_itself(searcher, directory):
    embeddings = np.load(directory / "embeddings.npy").astype(np.float32)
    answer = searcher.search(Question(picture=encode(embeddings[9]), limit=3))
    assert answer.hits[0].image_id == sorted(RECORDS)[9]
    assert answer.hits[0].score == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (Question("(dog"), QueryError),
        (Question(picture="xyz!"), QueryError),
        (Question(picture="AAAA"), QueryError),
        (Question(like="0" * 16 + "0"), NoSuchImage),
        (Question("dog", like="../etc"), NoSuchImage),
    ],
)
def test_what_cannot_be_asked_is_refused(searcher, question, error):
    with pytest.raises(error):
        searcher.search(question)


def test_an_answer_says_how_long_its_steps_took(searcher):
    timing = asked(searcher, "horse OR apple", 0, 5).timing
    assert timing.keys() == {"parse", "match", "rank", "records"}
    assert all(milliseconds >= 0 for milliseconds in timing.values())


def test_the_direction_of_an_image_is_that_which_scores_it(searcher, directory):
    hit = asked(searcher, "dog OR cat").hits[0]
    direction = searcher.direction(Question("dog OR cat"), hit.image_id)
    row = sorted(RECORDS).index(hit.image_id)
    assert float(np.load(directory / "embeddings.npy")[row].astype(np.float32) @ direction) == pytest.approx(
        hit.score, abs=1e-4
    )
    assert searcher.direction(Question("-dog"), hit.image_id) is None
    assert searcher.direction(Question("dog"), "0" * 15) is None


def test_the_query_of_an_answer_asks_for_the_same_tags(searcher):
    answer = asked(searcher, f'DOG {PHRASE} "{AWKWARD[0]}"', 0, 5)
    assert [count.tag for count in asked(searcher, answer.query, 0, 5).tags] == ["dog", PHRASE, AWKWARD[0]]


@pytest.mark.parametrize("text", ["", "  ,, ", '""'])
def test_a_query_of_no_words_has_no_tags(searcher, text):
    assert asked(searcher, text, 0, 10).tags == ()


TYPOS = {"dgo": "dog", "appel": "apple", "brige": "bridge", "rivers": "river", "gitar": "guitar", "clokc": "clock"} | {
    "trafic light": PHRASE, "chairr": "chair", "hrose": "horse", "tre": "tree", "baot": "boat"
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_of_a_misspelt_tag_the_intended_one_is_among_the_first_three(searcher, typo):
    near = searcher.near(typo)
    assert TYPOS[typo] in [count.tag for count in near.by_spelling[:3]]


def one_slip(word, rng):
    """Insert, delete, swap or replace a letter."""
    at, letter = int(rng.integers(len(word) - 1)), chr(97 + int(rng.integers(26)))
    slips = (
        word[:at] + letter + word[at:],
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + letter + word[at + 1 :],
    )
    return slips[int(rng.integers(4))]


def test_one_slip_in_any_of_two_thousand_words_finds_the_intended_one():
    words = (CARRIED / "words_200d.txt").read_text(encoding="utf-8").splitlines()
    tags = sorted([word for word in words if word.isascii() and word.isalpha() and len(word) >= 5][:2000])
    rng = np.random.default_rng(0)
    asked_for = [(row, slip) for row in range(0, 2000, 10) if (slip := one_slip(tags[row], rng)) not in tags]
    found = [row in spelled_like(slip, tags, np.ones(len(tags))) for row, slip in asked_for]
    assert len(found) > 150
    assert np.mean(found) >= 0.98


@pytest.mark.parametrize(("word", "meant"), [("puppy", "dog"), ("ship", "boat"), ("automobile", "car")])
def test_of_an_unknown_word_the_tag_of_the_nearest_meaning_comes_first(searcher, word, meant):
    answer = asked(searcher, word, 0, 10)
    assert answer.unknown[0].by_meaning[0].tag == meant
    assert answer.num_matches == 0


def test_one_unknown_word_leaves_the_known_tags_named(searcher):
    answer = asked(searcher, "dog wxyz", 0, 10)
    assert [count.tag for count in answer.tags] == ["dog"]
    assert [near.word for near in answer.unknown] == ["wxyz"]


def test_without_words_of_the_same_space_there_are_no_neighbours_by_meaning(trained, directory):
    class OtherWords(CarriedWords):
        def __init__(self):
            super().__init__()
            self.digest = "another"

    searcher = LocalSearcher(directory, trained.artifact("collection"), OtherWords())
    assert searcher.near("puppy").by_meaning == ()


def test_where_no_tag_has_a_vector_nothing_is_predicted_and_nothing_raised(trained, directory, monkeypatch):
    searcher = LocalSearcher(directory, trained.artifact("collection"), CarriedWords())
    monkeypatch.setattr(searcher._meaning, "known", np.zeros(searcher.num_tags, dtype=bool))
    assert searcher.near("puppy").by_meaning == ()
    assert searcher.details(min(RECORDS)).predicted == ()


def suggested(searcher, text, limit=10):
    return [count.tag for count in searcher.suggest(text, limit)]


def test_suggestions_are_the_tags_that_start_so_most_frequent_first(searcher):
    expected = sorted((t for t in TAGS if t.startswith("c")), key=lambda tag: (-len(carrying(tag)), tag))
    assert suggested(searcher, "c") == expected
    assert suggested(searcher, "C", limit=2) == expected[:2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tra", [PHRASE]),
        ('"traffic li', [PHRASE]),
        ("dog tra", [PHRASE]),
        ("猫", ["猫"]),
        ("say", ['say "hi"']),
        ('"say ""h', ['say "hi"']),
        ("", []),
        ("dog ", []),
        ("zzz", []),
        ("\U0010ffff", []),
    ],
)
def test_a_half_typed_query_is_completed(searcher, text, expected):
    assert suggested(searcher, text) == expected


def test_a_tag_that_the_query_has_already_is_not_suggested(searcher):
    assert "car" not in suggested(searcher, "car c")
    assert len(suggested(searcher, "car c", limit=3)) == 3


def test_popular_tags_are_the_most_frequent(searcher):
    counts = searcher.browse("", "frequency", 0, 5)[1]
    every = sorted([*TAGS, PHRASE, NO_VECTOR, *AWKWARD], key=lambda tag: (-len(carrying(tag)), tag))
    assert [count.tag for count in counts] == every[:5]
    assert [count.num_images for count in counts] == [len(carrying(tag)) for tag in every[:5]]


def test_tags_are_browsed_by_name_and_by_quality(trained, searcher):
    assert [count.tag for count in searcher.browse("c", "name", 1, 2)[1]] == ["cat", "chair"]
    assert searcher.browse("c", "name", 0, 1)[0] == sum(tag.startswith("c") for tag in TAGS)
    with (trained.run("small") / "evaluation" / "test" / "per_tag.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["question"], row["system"]) == ("gallery", "trained")]
    quality = {row["tag"]: float(row["map"]) for row in rows}
    found = [count.tag for count in searcher.browse("", "quality", 0, 100)[1]]
    judged = [tag for tag in found if tag in quality]
    assert found[: len(judged)] == judged
    assert len(judged) == len(quality) > 5
    assert [quality[tag] for tag in judged] == sorted(quality.values(), reverse=True)


def test_details_hold_the_record_and_predictions_best_first(searcher):
    image_id = sorted(RECORDS)[5]
    details = searcher.details(image_id)
    scores = [each.score for each in details.predicted]
    assert details.record["title"] == RECORDS[image_id].title
    assert details.hit.tags == tuple(normalise_tags(RECORDS[image_id].tags))
    assert scores == sorted(scores, reverse=True)
    assert NO_VECTOR not in [each.tag for each in details.predicted]


@pytest.mark.parametrize(
    "image_id", ["", "0", "f" * 16, "f" * 17, "../../etc/passwd", "猫" * 16, "\0" * 16, "0" * 15 + "\0"]
)
def test_an_image_that_is_not_there_has_no_page_and_no_picture(searcher, image_id):
    assert searcher.details(image_id) is None
    assert searcher.jpeg(image_id) is None


def test_the_picture_is_the_one_of_the_shard(searcher):
    for image_id in RECORDS:
        assert searcher.jpeg(image_id) == b"jpeg of " + image_id.encode()


@pytest.fixture
def own(trained, tmp_path):
    return copy_line(trained, tmp_path)


def test_a_newly_published_generation_takes_over_between_two_requests(own):
    current = CurrentSearcher(own, "small")
    old = current()
    index_again(own, [records()[:-3]])
    directory = published(own)
    new = current()
    assert new.generation == directory.name != old.generation
    assert new.num_images == old.num_images - 3
    assert len(matches(asked(old, "dog", 0, 1000))) == len(carrying("dog"))


def test_while_a_generation_is_opened_others_are_answered_by_the_old_one(own, monkeypatch):
    current = CurrentSearcher(own, "small")
    old, opening, opened = current(), threading.Event(), threading.Event()
    real = current._open

    def slow():
        opening.set()
        opened.wait(20)
        return real()

    monkeypatch.setattr(current, "_open", slow)
    index_again(own, [records()[:-3]])
    published(own)
    first = threading.Thread(target=current)
    first.start()
    opening.wait(20)
    assert current() is old
    opened.set()
    first.join()
    assert current() is not old


def test_threads_that_search_while_generations_change_get_answers_of_one_each(own):
    current = CurrentSearcher(own, "small")
    seen, problems, stop = set(), [], threading.Event()

    def search():
        while not stop.wait(0.005):  # leaves room for the publishing below
            searcher = current()
            answer = asked(searcher, "dog", 0, 1000)
            seen.add((searcher.generation, answer.num_matches))
            if not len(matches(answer)) == answer.num_matches == len(set(ids_of(answer))):
                problems.append(answer)

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    totals = {current().generation: asked(current(), "dog", 0, 1).num_matches}
    for gone in (40, 80):
        index_again(own, [records()[:-gone]])
        totals[published(own).name] = sum("dog" in record.tags for record in records()[:-gone])
        current()
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert seen <= set(totals.items())


def test_an_alias_finds_its_tag_and_a_broader_tag_the_narrower_ones(own):
    relations = "tag,relation,other\nautomobile,alias,car\ndog,broader,pet\ncat,broader,pet\nriver,broader,boat\n"
    (own.artifact("collection") / "tag_relations.csv").write_text(relations)
    searcher = LocalSearcher(published(own), own.artifact("collection"), CarriedWords())
    assert set(ids_of(asked(searcher, "automobile"))) == carrying("car")
    assert set(ids_of(asked(searcher, "pet"))) == carrying("dog") | carrying("cat")
    assert set(ids_of(asked(searcher, "boat"))) == carrying("boat") | carrying("river")
    assert set(ids_of(asked(searcher, "river"))) == carrying("river")
    assert asked(searcher, "pet").tags[0].num_images == len(carrying("dog") | carrying("cat"))
    assert asked(searcher, "automobile").unknown == ()


def test_two_generations_that_take_turns_under_many_threads_never_mix_nor_fail(own):
    first = current_generation(own.artifact("served") / "small", make="").name
    index_again(own, [records()[:-40]])
    second = published(own).name
    pointer = own.artifact("served") / "small" / "current"
    counts = {first: len(carrying("dog")), second: sum("dog" in record.tags for record in records()[:-40])}
    current = CurrentSearcher(own, "small")
    seen, problems, done = set(), [], threading.Event()

    def search():
        while not done.is_set():
            try:
                searcher = current()
                answer = asked(searcher, "dog -cat OR horse", 0, 20)
                seen.add((searcher.generation, asked(searcher, "dog").num_matches, answer.num_matches))
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        atomic_write(pointer, (first, second)[turn % 2] + "\n")
        current()
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert {(generation, number) for generation, number, _ in seen} <= set(counts.items())
    assert len({number for _, _, number in seen}) == len({generation for generation, _, _ in seen})


def test_a_generation_that_cannot_be_opened_is_not_taken_over_and_the_next_one_is(own, caplog):
    current = CurrentSearcher(own, "small")
    old, pointer = current(), own.artifact("served") / "small" / "current"
    atomic_write(pointer, "nowhere\n")
    assert current() is old
    assert current() is old
    assert sum("cannot be served" in record.message for record in caplog.records) == 1
    index_again(own, [records()[:-3]])
    latest = published(own)
    assert current().generation == latest.name


def test_a_searcher_answers_on_after_its_generation_is_gone(own):
    searcher = CurrentSearcher(own, "small")()
    before = asked(searcher, "dog -cat").hits
    shutil.rmtree(current_generation(own.artifact("served") / "small", make=""))
    assert asked(searcher, "dog -cat").hits == before
    assert len(asked(searcher, "river").hits) == len(RECORDS)
    assert searcher.details(sorted(RECORDS)[0]).record["title"]


def test_several_runs_are_opened_by_name_with_one_word_table(trained):
    searchers = open_searchers(trained, ["small"])
    assert list(searchers) == ["small"]
    assert searchers["small"]().run == "small"


def test_a_generation_that_no_request_holds_closes_its_shards(own, monkeypatch):
    closed = []
    monkeypatch.setattr(serve.searchers.local.JpegReader, "close", lambda reader: closed.append(reader))
    searcher = LocalSearcher(
        current_generation(own.artifact("served") / "small", make=""), own.artifact("collection"), None
    )
    del searcher
    assert len(closed) == 1
