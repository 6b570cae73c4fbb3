import copy
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from reward.report.cautions import warnings
from reward.report.figures import DASH
from reward.report.judges import reward_name
from reward.report.page import facts, figure_rows, headline, render, show_hidden

VOID = {"meta", "br"}
XSS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</p></article></main><iframe src=javascript:alert(1)>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</pre></details><a href='javascript:alert(1)'>x</a>",
    "<!-- <b> -->",
    "]]><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
    "<base href=//evil.example><link rel=stylesheet href=//evil.example>",
]


def interval(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def policy(**changes):
    figures = {"score_mean": 0.0, "score_std": 1.0, "gold_mean": 0.5, "kl": 0.0, "length_mean": 20.0, "eos_rate": 0.98}
    figures |= {"distinct_1": 0.2, "distinct_2": 0.5, "perplexity": 6.0, "win_rate": None, "intervals": {}}
    return figures | changes


def make_report(text="a plain word"):
    """A healthy run; `text` stands wherever a model, a data file or a config could have put something."""
    rate = {"value": 0.84, "low": 0.79, "high": 0.89, "wins": 160, "ties": 16, "losses": 24}
    curve = {"step": [0, 10, 20], "value": [0.0, 1.0, 1.5]}
    names = ("objective/scores", "eval/scores", "objective/kl", "eval/kl", "response/length_mean", "eval/length_mean")
    example = {"prompt": [{"role": text, "content": text}], "sft": text, "ppo": text, "winner": "ppo", "picked": text}
    return {
        "win_rate": {"by": f"gold rule {text}"} | rate,
        "policies": {
            "sft": policy(),
            "ppo": policy(score_mean=1.4, gold_mean=0.8, kl=7.0, win_rate_by_gold=rate, win_rate_by_score=rate),
        },
        "num_prompts": 200,
        "num_responses": 200,
        "simulated": True,
        "seed": 0,
        "run": text,
        "kl_budget": 20.0,
        "exported_step": 20,
        "curves": dict.fromkeys(names, curve),
        "frontier": [[0.0, 0.0, 0], [4.0, 1.0, 10], [7.0, 1.5, 20]],
        "scores": {"sft": [0.0, -1.0, 1.0], "ppo": [1.0, 1.5, 2.0]},
        "gold": {"sft": [0.4, 0.5, 0.6], "ppo": [0.8, 0.7, 0.9]},
        "examples": [example | {"scores": {"sft": 0.1, "ppo": 1.2}, "gold": {"sft": 0.5, "ppo": 0.75}}],
        "reward_cards": {
            "reward model": {
                "num_pairs": 1500,
                "num_rankings": 300,
                "num_prompts": 120,
                "pair_accuracy": interval(0.87),
                "baselines": {"length": interval(0.55), "random": 0.5},
                "human_agreement": interval(0.86),
                "by_rank_gap": [
                    {"gap": 1, "value": 0.79, "num_pairs": 800},
                    {"gap": 2, "value": 0.95, "num_pairs": 700},
                ],
                "reliability": [{"predicted": 0.2, "observed": 0.25, "count": 40}],
                "ece": 0.03,
            }
        },
        "lineage": [
            {
                "stage": text,
                "path": text,
                "sha256": text,
                "created": text,
                "base": text,
                "data": [{"path": text, "sha256": text}],
            }
        ],
        "versions": {text: text},
        "rewards": [{"source": "reward", "weight": 1.0}],
        "notes": [text],
        "configs": [
            {
                "stage": text,
                "path": text,
                "changed": {text: {"value": text, "default": [text]}},
                "values": {text: text, "ppo.rewards": [{"source": text}]},
            }
        ],
    }


def words_only(report):
    """The report without what is plotted: quick to render."""
    report = {name: value for name, value in report.items() if name not in ("curves", "frontier", "scores", "gold")}
    cards = {name: card | {"reliability": []} for name, card in report["reward_cards"].items()}
    return report | {"reward_cards": cards}


@pytest.fixture(scope="module")
def page():
    return render(make_report())


class Outline(HTMLParser):
    """Tags and attribute names of a page in order, the ids, and whatever is not closed properly."""

    def __init__(self, page):
        super().__init__()
        self.structure, self.attributes, self.open, self.faults = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.structure.append((tag, tuple(name for name, _ in attributes)))
        self.attributes += attributes

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_comment(self, data):
        self.structure.append(("comment", ()))


# -- words


def test_headline_says_who_wins_how_surely_and_who_judges():
    assert headline(make_report()) == (
        "PPO wins 84 % of 200 held-out prompts against SFT (95 % interval 79-89 %), judged by the gold rule. "
        "Annotators and judge are simulated."
    )


def test_headline_of_real_annotators_does_not_say_simulated():
    report = make_report() | {"simulated": False}
    report["win_rate"]["by"] = "reward model"

    assert headline(report).endswith("judged by the reward model that PPO optimised.")
    assert "imulated" not in render(words_only(report))


@pytest.mark.slow
def test_a_healthy_run_has_no_warning(page):
    assert warnings(make_report()) == []
    assert "None of the automatic checks" in page


RULE, SUM = "rule my_rules:short", "weighted sum of rewards"
TERMS = {
    "reward model": [{"source": "reward", "weight": 1.0}],
    RULE: [{"source": "my_rules:short", "weight": 2.0}],
    SUM: [{"source": "reward", "weight": 1.0}, {"source": "my_rules:short", "weight": -0.5}],
}


@pytest.mark.parametrize("name", TERMS)
def test_the_judge_is_what_ppo_optimised_by_its_name_with_terms_and_weights(name):
    report = words_only(make_report()) | {"rewards": TERMS[name], "simulated": False}
    assert reward_name(TERMS[name]) == name
    report["win_rate"]["by"] = name

    assert headline(report).endswith(f"judged by the {name} that PPO optimised.")
    assert f"The judge is the {name}, which PPO is trained to please" in warnings(report)[0]
    optimised = {
        "reward model": "1 \N{MULTIPLICATION SIGN} reward model",
        RULE: "2 \N{MULTIPLICATION SIGN} rule my_rules:short",
        SUM: "1 \N{MULTIPLICATION SIGN} reward model \N{MINUS SIGN} 0.5 \N{MULTIPLICATION SIGN} rule my_rules:short",
    }
    assert dict(facts(report))["PPO optimised"] == optimised[name]


def test_no_reward_model_is_spoken_of_where_a_rule_was_the_reward():
    report = words_only(make_report()) | {"rewards": TERMS[RULE], "reward_cards": {}}
    report["win_rate"]["by"] = RULE

    page = render(report).split("</style>")[1].lower()

    assert "reward model" not in page.replace("reward models often like length", "") and "annotator" not in page


def test_simulated_are_only_those_who_took_part():
    rules = make_report() | {"rewards": TERMS[RULE]}
    assert headline(rules).endswith("judged by the gold rule. The judge is simulated.")
    rules["win_rate"]["by"] = RULE
    assert headline(rules).endswith("that PPO optimised.")


def test_a_gold_rule_that_ppo_optimised_is_no_independent_judge():
    report = make_report() | {"rewards": [{"source": "my_rules:kind", "weight": 1.0}]}
    report["win_rate"]["by"] = "gold rule my_rules:kind"

    assert "judged by the gold rule, which PPO optimised too." in headline(report)
    assert warnings(report) == ["The gold rule is also a reward that PPO optimised: it is no independent judge."]


def test_several_answers_to_a_prompt_are_told_apart_from_prompts():
    assert "84 % of 800 answers to 200 held-out prompts" in headline(make_report() | {"num_responses": 800})
    assert "84 % of 1 held-out prompt against" in headline(make_report() | {"num_prompts": 1, "num_responses": 1})


def test_what_the_data_reports_call_for_is_among_the_warnings_of_the_page():
    report = words_only(make_report()) | {"data_warnings": ["Data of reward: 30 of 100 answers are left out"]}

    assert warnings(report) == report["data_warnings"]
    assert "30 of 100 answers are left out" in render(report)


def test_each_stage_shows_its_own_settings_those_that_are_not_as_shipped_first():
    report = words_only(make_report())
    changed = {"ppo.learning_rate": {"value": 1e-6, "default": 3e-4}}
    values = {"ppo.learning_rate": 1e-6, "seed": 0}
    report["configs"] = [{"stage": "ppo", "path": "../other/ppo", "changed": changed, "values": values}]

    page = render(report)

    assert 'ppo <span class="muted">../other/ppo: 1 of 2 settings not as shipped</span>' in page
    assert "<code>1e-06</code></td><td><code>0.0003</code>" in page
    assert "ppo.learning_rate: 1e-06\nseed: 0" in page
    assert page.index("<code>ppo.learning_rate</code>") < page.index("All settings")


WARNED = {
    "includes 50 %": {"win_rate.value": 0.52, "win_rate.low": 0.47, "win_rate.high": 0.57},
    "worse than SFT": {"win_rate.value": 0.3, "win_rate.low": 0.2, "win_rate.high": 0.4},
    "Only 12 held-out prompts": {"num_prompts": 12},
    "judge is the reward model": {"win_rate.by": "reward model"},
    "best checkpoint is step 0": {"exported_step": 0},
    "likely reward hacking": {"policies.ppo.gold_mean": 0.4},
    "KL is close to its budget (18.5 of 20.0": {"policies.ppo.kl": 18.5},
    "KL is over its budget (23.0 of 20.0": {"policies.ppo.kl": 23.0},
    "Answers grew from 20 to 31 tokens": {"policies.ppo.length_mean": 31.0},
    "Only 85 % of PPO's answers end by themselves": {"policies.ppo.eos_rate": 0.85},
    "rose from 6.0 to 9.5": {"policies.ppo.perplexity": 9.5},
    "report card of the reward model is over 6 held-out prompts only": {"reward_cards.reward model.num_prompts": 6},
    "not clearly better than always preferring the longer": {"reward_cards.reward model.baselines.length.value": 0.86},
}


@pytest.mark.parametrize("phrase", WARNED)
def test_each_figure_that_calls_for_caution_gets_its_warning_and_no_other(phrase):
    report = make_report()
    for path, value in WARNED[phrase].items():
        *parents, name = path.split(".")
        at = report
        for parent in parents:
            at = at[parent]
        at[name] = value

    assert [phrase in message for message in warnings(report)] == [True]
    assert phrase.replace("'", "&#39;") in render(words_only(report))


def test_thresholds_themselves_are_no_reason_to_warn():
    report = make_report()
    report["policies"]["ppo"] |= {"length_mean": 30.0, "eos_rate": 0.9, "perplexity": 9.0, "kl": 17.9}

    assert warnings(report) == []


# -- page


def test_page_is_well_formed_and_every_id_is_its_own(page):
    outline = Outline(page)
    ids = [value for name, value in outline.attributes if name == "id"]

    assert (outline.faults, outline.open) == ([], [])
    assert len(ids) == len(set(ids))
    referenced = set(re.findall(r'(?:url\(#|href="#|labelledby=")([^)"]+)', page))
    assert referenced <= set(ids)


def test_page_asks_nothing_of_the_network_and_runs_nothing(page):
    outline = Outline(page)

    assert "script" not in {tag for tag, _ in outline.structure}
    for name, value in outline.attributes:
        assert name not in ("src", "srcset", "action", "data", "ping") and not name.startswith("on"), name
        assert name != "href" or value.startswith("#")
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "default-src 'none'" in page


@pytest.mark.parametrize("attack", XSS)
def test_untrusted_text_adds_no_element_and_no_attribute(attack):
    attacked, harmless = (Outline(render(words_only(make_report(text)))) for text in (attack, "a plain word"))

    assert attacked.structure == harmless.structure
    assert attacked.faults == []


def test_untrusted_text_is_shown_as_it_is():
    page = render(words_only(make_report("<b>1 & 2</b>")))

    assert page.count("&lt;b&gt;1 &amp; 2&lt;/b&gt;") >= 5


@pytest.mark.parametrize(("text", "shown"), [("a\u202eb", "a[U+202E]b"), ("a\x00b", "a[U+0000]b")])
def test_characters_that_hide_or_reorder_text_are_shown(text, shown):
    assert show_hidden(text) == shown
    assert shown in render(words_only(make_report(text)))


def test_a_lone_surrogate_does_not_stop_the_page_from_being_written():
    assert b"a[U+D800]b" in render(words_only(make_report("a\ud800b"))).encode("utf-8")


def test_joined_emoji_tabs_and_line_breaks_stay_as_they_are():
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0928\u093f\n\tx"

    assert show_hidden(family) == family


def test_each_term_of_the_reward_has_its_curve_whatever_it_is_called():
    curve = {"step": [1, 2], "value": [0.5, 1.0]}
    names = ("brief", "_own", "b$1$/reward", "<script>")
    report = words_only(make_report()) | {"curves": {f"objective/scores/{name}": curve for name in names}}

    page = render(report)

    assert ">Reward terms<" in page and "<script>" not in page
    for shown in ("brief", "_own", "b$1$/reward", "&lt;script&gt;"):
        assert f"{shown}</text>" in page and f"{shown} in training from 0.5 at step 1 to 1 at step 2" in page


@pytest.mark.slow
def test_two_reward_models_have_a_card_each_and_their_plots_are_told_apart():
    report = make_report()
    card = report["reward_cards"]["reward model"]
    report["reward_cards"] = {"reward model": card, "reward model ../b/reward": card}

    page = render(report)
    ids = [value for name, value in Outline(page).attributes if name == "id"]

    assert "<h3>reward model ../b/reward</h3>" in page and ">Reward models<" in page
    assert len(ids) == len(set(ids))


def test_every_plot_has_a_sentence_for_those_who_cannot_see_it(page):
    labels = re.findall(r'<div role="img" aria-label="([^"]*)">', page)

    assert (
        len(labels) == page.count("<svg") + 1 == 8
    )  # score, KL, length, frontier, two histograms, calibration; the bar
    assert all(label.endswith(".") and len(label) > 30 for label in labels)
    assert "on held-out prompts from 0 at step 0 to 1.5 at step 20" in page


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes(page):
    assert render(make_report()) == page


def test_the_winner_is_told_in_words_not_by_colour_alone(page):
    assert page.index("<strong>SFT</strong>") < page.index("<strong>PPO</strong>") < page.index("✓ better")
    tied = words_only(make_report())
    tied["examples"][0]["winner"] = "tie"
    assert render(tied).count("= tie") == 2


def test_figures_stand_beside_each_other_with_their_difference(page):
    row = re.search(r">Reward score<span.*?</tr>", page, flags=re.DOTALL).group()

    assert re.findall(r'class="value">([^<]*)<', row) == ["0.00", "1.40", "+1.40"]


def test_a_figure_says_what_it_is_over_and_when_it_is_an_estimate():
    report = words_only(make_report()) | {"num_demonstrations": 31}
    report["policies"]["ppo"]["kl"] = -0.02
    report["reward_cards"]["reward model"]["human_agreement"] = {"value": 0.8, "num_pairs": 5}
    notes = {row[0]: row[1] for row in figure_rows(report)}

    assert notes["Perplexity"].endswith("a rise means forgetting (31 examples)")
    assert "can fall below 0" in notes["KL"]
    assert "on the same two answers (5 pairs)" in render(report)
    report["policies"]["ppo"]["kl"] = 0.02
    assert "can fall below 0" not in render(report)


def test_an_answer_of_white_space_is_said_to_be_one():
    report = words_only(make_report())
    report["examples"][0] |= {"sft": "", "ppo": " \n"}

    page = render(report)

    assert "(empty answer)" in page and "(only white space)" in page


def test_provenance_shows_short_hashes():
    report = words_only(make_report())
    report["lineage"][0]["sha256"] = "0123456789abcdef" * 4

    page = render(report)

    assert ">0123456789ab</code>" in page and "0123456789abc" not in page


SMALLEST = {"win_rate": {"by": "reward model", "value": 0.5, "low": 0.5, "high": 0.5}, "num_prompts": 1}
PARTS = {
    "policies": ">Figures<",
    "curves": ">Response length<",
    "frontier": ">Score-KL frontier<",
    "scores": ">Reward scores<",
    "gold": ">Gold marks<",
    "reward_cards": ">Reward model<",
    "examples": ">Examples<",
    "lineage": ">Manifest sha256<",
    "configs": ">What each stage was told<",
}


@pytest.mark.slow
@pytest.mark.parametrize("absent", [{}, dict.fromkeys(PARTS)], ids=["left out", "null"])
@pytest.mark.parametrize("part", PARTS)
def test_each_part_stands_alone_and_what_is_absent_is_left_out(part, absent):
    page = render(SMALLEST | absent | {part: make_report()[part]})

    assert [name for name, title in PARTS.items() if title in page] == [part]
    assert Outline(page).faults == []


def test_a_report_without_gold_rule_shows_no_gold():
    report = words_only(make_report())
    report["win_rate"]["by"] = "reward model"
    for figures in report["policies"].values():
        figures |= {"gold_mean": None, "win_rate_by_gold": None}
    report["examples"][0]["gold"] = None

    assert "gold" not in render(report).split("</style>")[1].lower()


@pytest.mark.slow
def test_figures_that_are_not_known_show_a_dash_and_never_nan():
    report = make_report()
    report["policies"]["sft"]["perplexity"] = None
    report["policies"]["ppo"]["distinct_1"] = float("nan")
    report["reward_cards"]["reward model"] |= {"ece": float("nan"), "top1": {"value": None, "low": None, "high": None}}
    report["scores"]["sft"] = [float("nan"), 1.0]
    report["curves"] = {"eval/kl": {"step": [0, 1], "value": [0.0, float("nan")]}}

    page = render(report)

    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)
    rows = {row[0]: (row[2][0], row[3][0]) for row in figure_rows(report)}
    assert rows["Perplexity"] == (DASH, "6.00") and rows["Distinct words"] == ("20.0 %", DASH)
    assert "Calibration error" not in page and "Best answer found" not in page


def test_rendering_changes_nothing_in_the_report():
    report = words_only(make_report())
    before = copy.deepcopy(report)

    render(report)

    assert report == before


@pytest.mark.slow
def test_plots_are_drawn_without_pyplot():
    code = "import sys; from reward.report.plots import frontier_plot; frontier_plot([[0, 0, 0]], 0, 20.0); "
    code += "print('matplotlib.pyplot' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
