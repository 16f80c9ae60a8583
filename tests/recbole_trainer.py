"""RecBole's own training of a model, as its users write it; it runs in RecBole's environment.

`python recbole_trainer.py MODEL FOLDER`: trains an epoch on `FOLDER/small`, leaves `FOLDER/MODEL.pth`, prints its test values.
"""

import json
import sys
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

name, folder = sys.argv[1], Path(sys.argv[2])
sys.argv = sys.argv[:1]
settings = {
    "epochs": 1,
    "train_batch_size": 64,
    "train_neg_sample_args": None,
    "data_path": str(folder),
    "checkpoint_dir": str(folder / "saved"),
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "use_gpu": False,
    "show_progress": False,
}
config = Config(model=name, dataset="small", config_dict=settings)
init_seed(config["seed"], config["reproducibility"])
train, valid, test = data_preparation(config, create_dataset(config))
model = get_model(name)(config, train._dataset)
trainer = Trainer(config, model)
trainer.fit(train, valid, verbose=False)
Path(trainer.saved_model_file).replace(folder / f"{name}.pth")
print(json.dumps({key: float(value) for key, value in trainer.evaluate(test, load_best_model=False).items()}))
