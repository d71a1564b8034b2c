# ruff: noqa: INP001  # scripts, each run in its own environment
"""scikit-learn: probes, neighbours and locally linear weights."""

import numpy as np
from protocol import DEVICES, DTYPES, Arrays, Worker, serve, variant


class ScikitWorker(Worker):
    """Its estimators, with their fastest exact settings."""

    packages = ("scikit-learn", "numpy")
    dtypes, devices = DTYPES, DEVICES  # the model's; what is computed here is float32, on the CPU

    def load(self) -> None:
        """See `Worker.load`."""
        import sklearn.linear_model
        import sklearn.manifold
        import sklearn.neighbors

        self.sklearn = sklearn

    @variant("w7_probes", "LogisticRegression")
    def probes(self) -> Arrays:
        """One logistic regression a layer, until no entry of the gradient exceeds 1e-5, which is also our default."""
        accuracies = []
        for train, test in zip(self.inputs["w7_train"], self.inputs["w7_test"], strict=True):
            probe = self.sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-5, max_iter=2000)
            probe.fit(train, self.inputs["w7_train_labels"])
            accuracies.append((probe.predict(test) == self.inputs["w7_test_labels"]).mean())
        return {"accuracy": np.asarray(accuracies)}

    @variant("w8_neighbours", "NearestNeighbors, brute")
    def neighbours(self) -> Arrays:
        """Exact neighbours of every token."""
        count, points = self.number("w8_neighbours"), self.inputs["w8_points"]
        search = self.sklearn.neighbors.NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points)
        return {"indices": search.kneighbors(return_distance=False)}

    @variant("w8_weights", "barycenter_weights")
    def weights(self) -> Arrays:
        """Locally linear weights of given neighbours."""
        from sklearn.manifold._locally_linear import barycenter_weights

        points = self.inputs["w8_points"]
        return {"weights": barycenter_weights(points, points, self.inputs["w8_indices"], reg=1e-3)}


if __name__ == "__main__":
    serve(ScikitWorker())
