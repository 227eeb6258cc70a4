"""What process.py and sweep.py compare with: the training script that a careful person writes by hand.

The model and the optimizer's settings are those of conf/. Validation, a checkpoint and MLflow's metrics in each epoch.
"""

import argparse
from pathlib import Path

import mlflow
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train with each seed from 0 on, in this one process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    mlflow.set_tracking_uri(arguments.tracking_uri)
    mlflow.set_experiment("handwritten")
    for seed in range(arguments.seeds):
        train_once(seed, arguments.epochs, arguments.checkpoint)


def train_once(seed: int, epochs: int, checkpoint: Path) -> None:
    torch.manual_seed(seed)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    train, val = train_test_split(range(len(targets)), test_size=0.2, random_state=0, stratify=targets)
    train_loader = DataLoader(TensorDataset(images[train], targets[train]), batch_size=64, shuffle=True)
    val_loader = DataLoader(TensorDataset(images[val], targets[val]), batch_size=64)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.01)

    with mlflow.start_run():
        mlflow.log_params({"epochs": epochs, "batch_size": 64, "lr": 0.005, "weight_decay": 0.01, "seed": seed})
        for epoch in range(1, epochs + 1):
            model.train()
            train_loss = 0.0
            for inputs, answers in train_loader:
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs), answers)
                loss.backward()
                optimizer.step()
                train_loss += loss.item() * len(answers)

            model.eval()
            val_loss, correct = 0.0, 0
            with torch.no_grad():
                for inputs, answers in val_loader:
                    logits = model(inputs)
                    val_loss += cross_entropy(logits, answers).item() * len(answers)
                    correct += (logits.argmax(dim=1) == answers).sum().item()

            values = {
                "train_loss": train_loss / len(train),
                "val_loss": val_loss / len(val),
                "val_accuracy": correct / len(val),
            }
            mlflow.log_metrics(values, step=epoch)
            print(f"epoch {epoch}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
            state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, checkpoint)
        mlflow.log_artifact(str(checkpoint))


if __name__ == "__main__":
    main()
