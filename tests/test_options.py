"""Where the value of a flag comes from, what contradicts what, and what the name of a run tells."""
import dataclasses

import pytest
import torch
from conftest import make_checkpoint

import options
from checkpoint import load_checkpoint
from model import METHODS
from utils import UserError

SIZED = ("optim", "schedule", "epochs", "augment", "img_h", "img_w")


def parse(*words):
    return options.parse_train(list(map(str, words)))[0]


def name(*words):
    return options.run_name(parse(*words))


def test_paper_is_what_the_flags_declare():
    args = parse()
    assert args.recipe == "paper" and args == parse("--recipe", "paper")
    assert [getattr(args, name) for name in SIZED] == ["sgd", "step", 80, None, 288, 144]
    assert (args.lr, args.direction, args.data_path) == (0.1, "i2v", "data/SYSU-MM01")


@pytest.mark.parametrize("recipe", ["strong", "short"])
def test_a_recipe_sets_all_defaults_and_each_stays_open_to_its_flag(recipe):
    row, plain = options.RECIPES[recipe], vars(parse())
    assert set(row) == set(SIZED)
    assert vars(parse("--recipe", recipe)) == {**plain, "recipe": recipe, **row}
    words = "--optim adam --schedule step --epochs 7 --augment erase,grey --img_h 96".split()
    assert vars(parse("--recipe", recipe, *words)) == {
        **plain, "recipe": recipe, **row, "optim": "adam", "schedule": "step", "epochs": 7,
        "augment": "erase,grey", "img_h": 96}


def test_a_method_trains_as_its_authors_do_unless_flags_say_otherwise(monkeypatch):
    monkeypatch.setitem(METHODS, "theirs", dataclasses.replace(
        METHODS["base"], recipe={"epochs": 7, "lr": 0.3, "img_h": 384}))
    args = parse("--method", "theirs")
    assert (args.epochs, args.lr, args.img_h, args.img_w) == (7, 0.3, 384, 144)
    assert parse("--method", "theirs", "--epochs", 9).epochs == 9
    assert parse("--method", "theirs", "--arch", "mobilenet_v2").lr == 0.01  # theirs is one for ResNet-50
    assert parse("--method", "theirs", "--recipe", "short").epochs == 24


def test_own_folders_train_for_a_length_by_their_images(regdb):
    words = ("--recipe", "own", "--dataset", "regdb", "--data-path", regdb)
    args = parse(*words)
    assert (args.arch, args.optim, args.lr, args.schedule) == ("mobilenet_v2", "adam", 0.0035, "cosine")
    assert (args.img_h, args.img_w, args.epochs) == (192, 96, 120)  # 16 images: the most
    assert parse(*words, "--epochs", 3, "--lr", 0.01).epochs == 3


@pytest.mark.parametrize("method", ["caj", "strong", "cgrnet-strong"])
def test_a_method_with_augmentations_of_its_own_keeps_them(method):
    assert parse("--recipe", "strong", "--method", method).augment is None
    args = parse("--recipe", "strong", "--method", method, "--augment", "grey")
    assert {view.augment for view in options.method_of(args).views.values()} == {("grey",)}


def test_every_flag_that_makes_a_model_what_it_is_is_told():
    plain = "sysu_cgrnet_p4_n8_lr_0.1_seed_0"
    assert name() == plain
    assert name("--dataset", "regdb", "--trial", 3) == "regdb_cgrnet_p4_n8_lr_0.1_seed_0_trial_3"
    for words, end in (
            ("--arch resnet18 --img_w 16", "resnet18_288x16"), ("--schedule cosine", "cosine"),
            ("--epochs 3", "epochs_3"), ("--augment standard,grey", "standard-grey"),
            ("--optim adam", "adam"), ("--margin 0.5", "margin_0.5"),
            ("--pretrained none", "pretrained_none"), ("--pretrained x/mine.pth", "pretrained_mine"),
            ("--init x/base_last.t", "init_base_last"), ("--amp off", "amp_off"), ("--sync-bn", "sync_bn"),
            ("--name mine", "mine"),
            ("--set graph=None losses.triplet.weight=3", "graph-None_losses.triplet.weight-3")):
        assert name(*words.split()) == f"{plain}_{end}"
    assert name("--recipe", "strong") == f"{plain}_384x192_cosine_epochs_120_strong"
    for words in ("--workers 0", "--gpu cpu", "--eval-every 3", "--save_epoch 5", "--overwrite", "--compile"):
        assert name(*words.split()) == plain


def test_a_method_whose_row_is_changed_by_set():
    method = options.method_of(parse("--set", "graph=None", "losses.triplet.weight=3", "--margin", 0.5))
    assert method.losses["triplet"].weight == 3 and method.losses["triplet"].parameters["margin"] == 0.5
    with pytest.raises(UserError, match="nonsense"):
        options.method_of(parse("--set", "nonsense=3"))


def test_a_checkpoint_fills_in_and_fixes(tmp_path):
    path = make_checkpoint(tmp_path / "run_last.t")
    content = torch.load(path, weights_only=True)
    content["args"] |= {"epochs": 7, "keep": 2, "workers": 9, "model_path": "elsewhere", "test_only": True}
    torch.save(content, path)
    args, saved = options.parse_train(["--resume", str(path), "--keep", "3"])
    assert (args.method, args.arch, args.img_w, args.epochs, args.keep) == ("base", "resnet18", 16, 7, 3)
    assert args.workers == 4 and args.model_path == str(tmp_path) and saved.epoch == 1
    with pytest.raises(UserError, match="--method agw: the checkpoint .* was trained with --method base"):
        options.parse_train(["--resume", str(path), "--method", "agw"])
    with pytest.raises(UserError, match="--epochs 7: .* has 8 epochs behind it"):
        content["epoch"] = 8
        torch.save(content, path)
        options.parse_train(["--resume", str(path)])
    assert load_checkpoint(path).args["test_only"]  # of earlier code: no flag any more, and no harm


def test_auto_goes_on_with_the_run_of_these_flags_or_begins_it(tmp_path):
    words = ["--dataset", "regdb", "--method", "base", "--arch", "resnet18", "--img_w", "16", "--img_h", "32",
             "--model_path", str(tmp_path), "--resume", "auto"]
    args, saved = options.parse_train(words)
    assert args.resume is None and args.overwrite and saved is None
    path = make_checkpoint(tmp_path / f"{options.run_name(args)}_last.t")
    args, saved = options.parse_train(words)
    assert args.resume == str(path) and saved.epoch == 1


@pytest.mark.parametrize("words", ["--lr 0", "--batch-size 1", "--img_w 15", "--shot 5", "--arch vgg",
                                   "--augment strong,odd", "--init ''"])
def test_the_parser_refuses(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*(word.strip("'") for word in words.split()))
    flag = words.split()[0]
    assert ended.value.code == 2 and flag in capsys.readouterr().err
