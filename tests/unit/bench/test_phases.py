from bench.phases import Answer, Found, figures, requests


def test_the_same_seed_gives_the_same_requests_and_another_one_others() -> None:
    load = requests(3, 30, 2.0)
    assert load == requests(3, 30, 2.0)
    assert load != requests(4, 30, 2.0)
    assert [one.at_s for one in load] == sorted(one.at_s for one in load)
    assert {one.kind for one in load} == {"conversation", "code"}
    assert all(one.body["max_tokens"] >= 4 for one in load)


def test_an_answer_counts_when_it_is_within_both_targets() -> None:
    answers = [
        Answer("code", 1.0, 0.1, ""),
        Answer("code", 3.0, 0.1, ""),
        Answer("conversation", 1.0, 0.3, ""),
        Answer("conversation", 2.0, 0.2, ""),
    ]
    said = figures(Found(answers, 10.0, [0.0, 12.34]), 2.0, 0.2)
    assert (said["answers"], said["in_time"], said["goodput_rps"]) == (4, 2, 0.2)
    assert said["in_time_by_kind"] == {"conversation": 1, "code": 1}
    assert said["flips_ms"] == [12.3]
