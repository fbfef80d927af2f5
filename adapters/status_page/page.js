// Fetches the worker's status every second and shows it. Sets text only as textContent.

import { LossChart } from "/chart.js";
import { $, bytes, duration, fill, known, make, setText, speed } from "/dom.js";
import { JobTable, PHASES } from "/jobs.js";

const EVERY = 1000;
const LOST_AFTER = 3;

const STATES = {
  starting: ["Loading the base model", "busy"],
  idle: ["Waiting for a task", "good"],
  preparing: ["Preparing images", "busy"],
  training: ["Training", "busy"],
  uploading: ["Uploading the style", "busy"],
  announcing: ["Notifying the backend", "busy"],
  reporting: ["Writing the report", "busy"],
  stopping: ["Stopping", "warn"],
};

const PARTS = { queue: "waiting", call: "webhook" };

const chart = new LossChart($("plot"), $("curve-readout"));
const table = new JobTable($("jobs"), $("active-jobs"), (taskId) => choose(taskId));

function showWorker(status) {
  const { worker } = status;
  setText($("worker"), worker.name);
  setText($("version"), worker.version);
  const minutes = 60 * Math.floor(worker.up_seconds / 60);
  const facts = [worker.model, worker.device && `on ${worker.device}`, minutes && `up ${duration(minutes)}`];
  setText($("about"), facts.filter(Boolean).join(" · "));
  const [text, kind] = STATES[worker.state] ?? [worker.state, "busy"];
  const troubled = worker.state === "idle" && status.checks.some((check) => !check.ok);
  showState(troubled ? "Not ready" : text, troubled ? "bad" : kind);
  const percent = status.job?.progress?.percent;
  const others = status.jobs.length > 1 ? ` and ${status.jobs.length - 1} more` : "";
  const job = status.job && `${known(percent) ? `${percent} % ` : ""}style ${status.job.style_id}${others}`;
  document.title = `${job || text} · ${worker.name}`;
}

function showState(text, kind) {
  setText($("state-text"), text);
  $("state").dataset.kind = kind;
}

function showJob(status) {
  const job = status.job ?? status.last;
  const running = Boolean(status.job);
  setText($("job-title"), running ? `Style ${job.style_id}` : job ? `Last job: style ${job.style_id}` : "Current job");
  const attempt = job?.attempt > 1 ? ` · attempt ${job.attempt}` : "";
  setText($("job-task"), job ? `${job.task_id}${attempt}` : "");
  showNote(status, job, running);
  $("job-body").hidden = !job;
  if (!job) return;
  const begun = job.phases.filter(({ name, seconds }) => known(seconds) && name !== "announcing");
  const broke = job.result && job.result !== "completed" ? begun[begun.length - 1]?.name : null;
  fill($("phases"), [job.phase, broke, job.phases.map(({ seconds }) => known(seconds) && Math.round(seconds))], () =>
    job.phases.map(({ name, seconds }) => {
      const now = name === job.phase;
      const kind = now ? "now" : name === broke ? "broke" : known(seconds) ? "done" : "";
      const item = make("li", kind, PHASES[name] ?? name);
      if (now) item.setAttribute("aria-current", "step");
      item.append(make("small", "", known(seconds) ? duration(seconds) : ""));
      return item;
    })
  );
  showProgress(job, running);
  showFacts(job, running);
  $("curve").hidden = !job.curve.length;
  chart.show(job.curve, job.progress?.epochs ?? job.parameters?.epochs);
}

function showNote(status, job, running) {
  const note = $("job-note");
  note.className = "";
  if (running) {
    setText(note, known(job.resumed_from) ? `Resumed from the checkpoint of epoch ${job.resumed_from}.` : "");
  } else if (!job) {
    const starting = status.worker.state === "starting";
    setText(note, starting ? "The worker takes tasks as soon as its base model is loaded." : "No job yet. The worker starts the next task in the queue.");
  } else if (job.result === "completed") {
    setText(note, `Completed in ${duration(job.seconds)}.`);
  } else {
    note.className = job.result === "failed" || job.result === "dead letter" ? "bad" : "warn";
    const code = job.code ? ` (${job.code})` : "";
    setText(note, `${sentence(job.result)}${code}. ${job.message ?? ""}`);
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function showProgress(job, running) {
  const progress = job.progress;
  const percent = progress?.percent ?? 0;
  const left = running && known(progress?.seconds_left) && job.phase === "training" ? `about ${duration(progress.seconds_left)} left` : "";
  const epochs = progress ? `epoch ${progress.epoch} of ${progress.epochs}` : "no step yet";
  setText($("percent"), `${percent} %`);
  setText($("left"), [epochs, left].filter(Boolean).join(", "));
  $("fill").style.width = `${percent}%`;
  $("bar").setAttribute("aria-valuenow", percent);
  $("bar").setAttribute("aria-valuetext", [`${percent} %`, epochs, left].filter(Boolean).join(", "));
}

function showFacts(job, running) {
  const { progress, parameters } = job;
  const facts = [
    ["Epoch", progress ? `${progress.epoch} / ${progress.epochs}` : "–"],
    ["Step", progress ? `${progress.step} / ${progress.steps}` : "–"],
    ["Loss", known(progress?.loss) ? progress.loss.toFixed(4) : "–"],
    ["Measured loss", known(progress?.measured_loss) ? progress.measured_loss.toFixed(4) : "–"],
    ["Base model's loss", known(progress?.base_loss) ? progress.base_loss.toFixed(4) : "–"],
    ["Closeness to style", job.scores ? job.scores[0].toFixed(2) : "–"],
    ["Faithfulness to prompts", job.scores ? job.scores[1].toFixed(2) : "–"],
    ["Steps / s", known(progress?.steps_per_second) ? speed(progress.steps_per_second) : "–"],
    [running ? "Time so far" : "Duration", duration(job.elapsed)],
    ["Images", known(job.images) ? String(job.images) : "–"],
    ["Checkpoint", known(job.checkpoint) ? `epoch ${job.checkpoint}` : "–"],
    ["Rank", parameters ? String(parameters.rank) : "–"],
    ["Resolution", parameters ? `${parameters.resolution} px` : "–"],
    ["Learning rate", parameters ? parameters.learning_rate.toExponential(1).replace(".0e", "e") : "–"],
  ];
  fill($("facts"), facts, () => facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))));
}

function showChecks(checks) {
  fill($("checks"), checks, () =>
    checks.map(({ name, ok, reason }) => {
      const sign = make("span", "sign", ok ? "✓" : "✗");
      sign.setAttribute("aria-hidden", "true");
      const title = make("span", "", make("span", "unseen", ok ? "Ready: " : "Not ready: "), name);
      return make("li", ok ? "ok" : "not", sign, title, make("span", "quiet", reason));
    })
  );
}

function gauge(name, share, text) {
  const meter = make("div", "meter", make("span", ""));
  meter.setAttribute("role", "meter");
  meter.setAttribute("aria-label", name);
  meter.setAttribute("aria-valuemin", "0");
  meter.setAttribute("aria-valuemax", "100");
  meter.setAttribute("aria-valuenow", Math.round(share * 100));
  meter.setAttribute("aria-valuetext", text);
  meter.firstChild.style.width = `${share * 100}%`;
  return make("div", "gauge", make("p", "", make("span", "", name), make("span", "quiet", text)), meter);
}

function showGpus(gpus) {
  fill($("gpus"), gpus, () => {
    if (!gpus.length) return [make("p", "quiet", "No GPU: this worker trains on the CPU.")];
    return gpus.map((card) => {
      const rest = [known(card.temperature) && `${card.temperature} °C`, known(card.power) && `${Math.round(card.power)} W`];
      const box = make("div", "", make("p", "", card.name), make("p", "quiet", rest.filter(Boolean).join(" · ")));
      if (known(card.memory_used) && card.memory_total) {
        box.append(gauge("Memory", card.memory_used / card.memory_total, `${bytes(card.memory_used)} of ${bytes(card.memory_total)}`));
      }
      if (known(card.utilization)) {
        box.append(gauge("Utilisation", card.utilization, `${Math.round(card.utilization * 100)} %`));
      }
      return box;
    });
  });
}

function showQueues(queues) {
  const names = Object.entries(queues.depths);
  fill($("queues"), [names, queues.trouble], () => {
    if (queues.trouble) return [make("p", "trouble", queues.trouble)];
    const rows = names.map(([name, count]) => {
      const dead = name.endsWith(".dead") || name === "dead";
      const row = make("div", "", make("dt", "", name), make("dd", "", String(count)));
      if (dead && count) row.className = "alarm";
      return row;
    });
    return [make("dl", "rows", ...rows)];
  });
}

function showPreviews(previews) {
  $("previews").hidden = !previews;
  if (!previews) return;
  setText($("previews-of"), `of style ${previews.style_id}, epoch ${previews.epoch}`);
  fill($("pairs"), previews, () =>
    previews.pairs.map(({ prompt, seed, before, after }) => {
      const image = (when, address) => {
        const image = make("img", "");
        image.src = address;
        image.alt = `${prompt}, ${when === "so far" ? "so far in" : when} training`;
        return make("div", "", image, make("span", "", when));
      };
      const drawn = [before && image("before", before), after && image(before ? "after" : "so far", after)];
      const two = make("div", before && after ? "drawn two" : "drawn", ...drawn);
      return make("figure", "", two, make("figcaption", "", prompt || "no prompt", make("span", "quiet", ` · seed ${seed}`)));
    })
  );
}

function showRecent(jobs) {
  $("recent-none").hidden = jobs.length > 0;
  fill($("recent"), jobs, () =>
    jobs.map((job) => {
      const badge = make("span", `badge ${job.result.split(" ")[0]}`, job.result);
      const facts = [
        known(job.epoch) && `${job.epoch} / ${job.epochs} epochs`,
        known(job.loss) && `loss ${job.loss.toFixed(4)}`,
        known(job.seconds) && known(job.attempt) && duration(job.seconds),
        job.attempt > 1 && `attempt ${job.attempt}`,
      ];
      const what = make("span", "what", `Style ${job.style_id} `, make("span", "quiet", facts.filter(Boolean).join(" · ")));
      const when = make("time", "when quiet", new Date(job.ended_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
      when.dateTime = job.ended_at;
      when.title = `${new Date(job.ended_at).toLocaleString()}, task ${job.task_id}`;
      const parts = job.parts.map(({ name, seconds }) => `${PARTS[name] ?? name} ${seconds.toFixed(1)} s`).join(" · ");
      const why = [job.code, job.message].filter(Boolean).join(": ");
      const task = make("code", "why quiet task", job.task_id);
      return make("li", "", badge, what, when, task, ...[parts, why].filter(Boolean).map((text) => make("span", "why quiet", text)));
    })
  );
}

async function showConfiguration() {
  const response = await fetch("/api/configuration");
  if (!response.ok) return;
  const settings = await response.json();
  $("configuration").replaceChildren(
    ...settings.flatMap(({ name, value, meaning }) => [
      make("dt", "mono", name),
      make("dd", "", make("span", "mono", value), make("span", "quiet", meaning)),
    ])
  );
}

// Announce changes of state to screen readers, not every changed number.
let heard = null;
function say(status) {
  const phases = new Map(status.jobs.map((job) => [job.task_id, job.phase]));
  const last = status.recent[0];
  const end = last && `${last.task_id} ${last.ended_at}`;
  if (heard !== null) {
    const news = status.jobs
      .filter((job) => heard.phases.get(job.task_id) !== job.phase)
      .map((job) => `Style ${job.style_id}: ${STATES[job.phase]?.[0] ?? "received"}`);
    if (last && end !== heard.end) news.unshift(`Style ${last.style_id}: ${last.result}`);
    if (news.length) setText($("said"), news.join(". "));
  }
  heard = { phases, end };
}

function show(status) {
  showWorker(status);
  table.show(status.jobs, status.job?.task_id);
  showJob(status);
  showChecks(status.checks);
  showGpus(status.gpus);
  showQueues(status.queues);
  showPreviews(status.previews);
  showRecent(status.recent);
  say(status);
}

let paused = false;
let missed = 0;
let chosen = null; // task chosen by the user, while it is active

function choose(taskId) {
  chosen = taskId;
  update();
}

async function update() {
  const asked = chosen;
  try {
    const address = asked ? `/api/status?task=${encodeURIComponent(asked)}` : "/api/status";
    const response = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (response.status === 401) return location.reload();
    if (!response.ok) throw new Error(`the worker returned status ${response.status}`);
    const status = await response.json();
    if (asked !== chosen) return; // the response for the new choice is pending
    if (status.job?.task_id !== chosen) chosen = null;
    show(status);
    missed = 0;
    $("contact").hidden = true;
  } catch (error) {
    missed += 1;
    if (missed >= LOST_AFTER) {
      $("contact").hidden = false;
      setText($("contact"), "The worker does not respond. This page shows the last known values and retries.");
      showState("Disconnected", "bad");
    }
  }
}

// A hidden page still shows its title, so refresh it, but less often.
async function forever() {
  if (!paused) await update();
  setTimeout(forever, document.hidden ? 15 * EVERY : missed >= LOST_AFTER ? 5 * EVERY : EVERY);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) update();
});

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) update();
});

showConfiguration().catch(() => {});
forever();
