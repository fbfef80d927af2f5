// The table of active jobs, if there are several; choosing a row shows that job in full.

import { duration, known, make, setText, speed } from "/dom.js";

export const PHASES = {
  preparing: "Preparing",
  training: "Training",
  uploading: "Uploading",
  announcing: "Notifying",
};

const COLUMNS = ["phase", "epoch", "done", "speed", "left"];

// Whole minutes, from one minute on.
const roughly = (seconds) => duration(seconds < 60 ? seconds : 60 * Math.round(seconds / 60));

function cells(job) {
  const { progress, phase } = job;
  const left = phase === "training" && known(progress?.seconds_left);
  return {
    phase: PHASES[phase] ?? "Received",
    epoch: progress ? `${progress.epoch} / ${progress.epochs}` : "–",
    done: progress ? `${progress.percent} %` : "–",
    speed: known(progress?.steps_per_second) ? speed(progress.steps_per_second) : "–",
    left: left ? roughly(progress.seconds_left) : "–",
  };
}

export class JobTable {
  // Keep the row of an active job in place, with its focus and selection.
  constructor(card, body, choose) {
    this.card = card;
    this.body = body;
    this.choose = choose;
    this.rows = new Map();
  }

  show(jobs, shownTask) {
    this.card.hidden = jobs.length < 2;
    const listed = this.card.hidden ? [] : jobs;
    const active = new Set(listed.map((job) => job.task_id));
    for (const [taskId, row] of this.rows) {
      if (active.has(taskId)) continue;
      row.remove();
      this.rows.delete(taskId);
    }
    listed.forEach((job, place) => {
      const row = this.rows.get(job.task_id) ?? this.add(job);
      if (this.body.children[place] !== row) this.body.insertBefore(row, this.body.children[place] ?? null);
      const isShown = job.task_id === shownTask;
      row.className = isShown ? "shown" : "";
      row.querySelector("button").setAttribute("aria-pressed", String(isShown));
      const texts = cells(job);
      for (const name of COLUMNS) setText(row.querySelector(`.${name}`), texts[name]);
    });
  }

  add(job) {
    const button = make("button", "", `Style ${job.style_id}`);
    button.type = "button";
    button.title = `Task ${job.task_id}`;
    const name = make("th", "", button);
    name.scope = "row";
    const row = make("tr", "", name, ...COLUMNS.map((column) => make("td", column)));
    row.addEventListener("click", () => this.choose(job.task_id));
    this.rows.set(job.task_id, row);
    return row;
  }
}
