"""Makes the scikit-learn and Keras exports beside it; run it where skl2onnx, keras, torch and onnx are installed.

    python tests/data/onnx/make_sklearn_keras.py

The tests need none of these packages: they read the files that are committed.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
warnings.filterwarnings("ignore")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
from keras import layers  # noqa: E402
from skl2onnx import to_onnx  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

HERE = Path(__file__).parent


def sklearn_models() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 6)).astype(np.float32)
    three = x[:, :3].argmax(axis=1)
    two = (three > 0).astype(np.int64)
    network = {"hidden_layer_sizes": (8,), "max_iter": 40, "random_state": 0}
    models = {
        "logistic": (make_pipeline(StandardScaler(), LogisticRegression()), three),
        "logistic_binary": (LogisticRegression(), two),
        "logistic_strings": (LogisticRegression(), np.array(["a", "b", "c"])[three]),
        "logistic_normalized": (make_pipeline(Normalizer(), LogisticRegression()), three),
        "one_versus_rest": (OneVsRestClassifier(LogisticRegression()), three),
        "linear_svc": (LinearSVC(), three),
        "linear_svc_binary": (LinearSVC(), two),
        "mlp": (make_pipeline(StandardScaler(), MLPClassifier(**network)), three),
        "pca": (make_pipeline(PCA(4, whiten=True), LogisticRegression()), three),
        "pca_mlp": (make_pipeline(StandardScaler(), PCA(4), MLPClassifier(**network)), three),
        "minmax": (make_pipeline(MinMaxScaler(), LogisticRegression()), three),
        "mlp_binary": (MLPClassifier(**network), two),
        "sgd": (SGDClassifier(loss="log_loss", alpha=0.1, random_state=0), three),
        "linear_regression": (make_pipeline(StandardScaler(), LinearRegression()), 2 * x[:, 0] + x[:, 1]),
        "tree": (DecisionTreeClassifier(max_depth=2, random_state=0), three),
    }
    for name, (model, y) in models.items():
        model.fit(x, y)
        onnx.save(to_onnx(model, x[:1]), HERE / f"sklearn_{name}.onnx")


def keras_models() -> None:
    keras.utils.set_random_seed(0)
    dense, image = keras.Input((6,)), keras.Input((8, 8, 1))
    hidden = layers.Dropout(0.2)(layers.Dense(8, activation="relu")(dense))
    pooled = layers.MaxPooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu")(image))
    flat = layers.Flatten()(layers.BatchNormalization()(pooled))
    tokens = keras.Input((7,), dtype="int32")
    bag = layers.GlobalAveragePooling1D()(layers.Embedding(11, 5)(tokens))
    models = {
        "mlp": keras.Model(dense, layers.Dense(3, activation="softmax")(hidden)),
        "cnn": keras.Model(image, layers.Dense(3)(flat)),
        "tokens": keras.Model(tokens, layers.Dense(1, activation="sigmoid")(bag)),
    }
    for name, model in models.items():
        model(np.zeros((1, *model.input_shape[1:]), model.input.dtype))  # an exporter wants it called once
        model.export(HERE / f"keras_{name}.onnx", format="onnx", verbose=False)


if __name__ == "__main__":
    sklearn_models()
    keras_models()
