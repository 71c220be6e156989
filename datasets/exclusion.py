"""The benchmarks' rules of exclusion, as functions of arrays: which images each query is compared with."""
from __future__ import annotations

import numpy as np


def sysu_seen(infrared_camids: np.ndarray, visible_camids: np.ndarray) -> np.ndarray:
    """SYSU-MM01, (N, M) bool: cameras 3 and 2, of one room, are not compared."""
    rows = np.stack((np.ones(len(visible_camids), bool), visible_camids != 2))  # of camera 6, and of camera 3
    return rows[(infrared_camids == 3).astype(np.intp)]


def llcm_seen(q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray,
              g_camids: np.ndarray) -> np.ndarray:
    """LLCM, (Q, G) bool: a query does not see its person in the camera of its number."""
    return (q_pids[:, None] != g_pids) | (q_camids[:, None] != g_camids)
