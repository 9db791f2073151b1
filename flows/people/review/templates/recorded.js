"use strict";
// The decision is recorded: its draft is no longer needed.
try { localStorage.removeItem(`faded-decision ${document.getElementById("recorded").dataset.forget}`); } catch { /* none kept */ }
