// Shows one prediction after the other and sends what is said of it. All text goes in as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
let samples = [];
let order = []; // Numbers of the samples that are shown, in their order.
let place = 0; // In that order.
let saved = []; // What the disk has of each sample.
const unsaved = new Set(); // Numbers of samples whose last decision could not be saved.
let lastProblem = "";
let sending = Promise.resolve(); // One decision after the other.

const isLeft = (number) => samples[number].decision === null;

function arrange(keep) {
  order = samples.map((_, number) => number);
  if (at("order").value === "score") order.sort((a, b) => samples[b].score - samples[a].score || a - b);
  if (at("which").value === "left") order = order.filter((number) => isLeft(number) || number === keep);
  place = Math.max(0, order.indexOf(keep));
  show();
}

function show() {
  const called = samples.filter((sample) => sample.decision !== null).length;
  at("called").textContent = `${called} of ${samples.length} called`;
  at("progress").value = called / samples.length;
  at("complete").hidden = called < samples.length;
  const number = order[place];
  const sample = samples[number];
  for (const id of ["name", "said", "place"]) at(id).textContent = "";
  at("notes").replaceChildren();
  at("picture").hidden = at("missing").hidden = true;
  for (const id of ["normal", "anomalous"]) at(id).setAttribute("aria-pressed", String(sample?.decision === id));
  for (const id of ["normal", "anomalous", "clear"]) at(id).disabled = !sample;
  if (!sample) {
    at("place").textContent = "nothing is left";
    return;
  }
  const decided = {true: "called anomalous by the model", false: "called normal by the model", null: "not decided"};
  const threshold = sample.threshold === null ? "" : `, threshold ${sample.threshold.toPrecision(4)}`;
  at("place").textContent = `${place + 1} of ${order.length}`;
  at("name").textContent = sample.name;
  at("said").textContent =
    `${sample.class ?? "no class"}: score ${sample.score.toPrecision(4)}${threshold}, ${decided[sample.anomalous]}`;
  if (sample.picture) {
    at("picture").src = `pictures/${number}.png`;
    at("picture").alt = `images and anomaly map of ${sample.name}`;
  }
  at("picture").hidden = !sample.picture;
  at("missing").hidden = sample.picture;
  for (const note of sample.notes) {
    const item = document.createElement("li");
    item.textContent = note;
    at("notes").append(item);
  }
}

function move(step) {
  place = Math.min(Math.max(0, place + step), Math.max(0, order.length - 1));
  show();
}

async function send(number, decision) {
  const answer = await fetch("decisions", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({number, decision}),
  });
  if (!answer.ok) throw new Error(await problem(answer));
}

async function problem(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

function tellUnsaved(message) {
  const names = [...unsaved].map((number) => samples[number].name);
  at("error").textContent = names.length ? `could not be saved, call again: ${names.join(", ")}: ${message}` : "";
}

function decide(decision) {
  const number = order[place];
  if (number === undefined) return;
  samples[number].decision = decision;
  if (decision !== null && place + 1 < order.length) move(1);
  else show();
  sending = sending.then(() => send(number, decision)).then(
    () => {
      saved[number] = decision;
      unsaved.delete(number);
      tellUnsaved(lastProblem);
    },
    (error) => {
      if (samples[number].decision === decision) samples[number].decision = saved[number]; // Else it was called again.
      unsaved.add(number);
      lastProblem = error.message;
      tellUnsaved(lastProblem);
      show();
    },
  );
}

const keys = {
  n: () => decide("normal"),
  a: () => decide("anomalous"),
  u: () => decide(null),
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
};
document.addEventListener("keydown", (event) => {
  const of = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!of || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  event.preventDefault();
  if (event.repeat && event.key.length === 1) return; // A key that is held down calls one image, not those after it.
  of();
});
at("normal").addEventListener("click", keys.n);
at("anomalous").addEventListener("click", keys.a);
at("clear").addEventListener("click", keys.u);
at("next").addEventListener("click", keys.ArrowRight);
at("previous").addEventListener("click", keys.ArrowLeft);
for (const id of ["order", "which"]) {
  at(id).addEventListener("change", () => { arrange(order[place]); at(id).blur(); });
}
fetch("samples").then(async (answer) => {
  if (!answer.ok) throw new Error(await problem(answer));
  return answer.json();
}).then(
  (found) => {
    samples = found;
    saved = samples.map((sample) => sample.decision);
    arrange(undefined);
  },
  (error) => { at("error").textContent = `the predictions can't be read: ${error.message}`; },
);
