// Asks a worker to mine, so that the page never waits; where none starts, the page mines by itself, and says so.

const miner = { worker: null, mined: null, waiting: new Map(), asked: 0 };

function startMiner(mined) {
  try {
    const address = URL.createObjectURL(new Blob([el("mining").textContent], { type: "text/javascript" }));
    const policy = self.trustedTypes?.createPolicy("mining", { createScriptURL: (url) => url });
    miner.worker = new Worker(policy ? policy.createScriptURL(address) : address);
    miner.worker.onerror = mineHere;
    miner.worker.onmessage = ({ data: { number, found } }) => {
      miner.waiting.get(number).resolve(found);
      miner.waiting.delete(number);
    };
    miner.worker.postMessage({ started: mined });
  } catch (refused) {
    mineHere();
  }
}

// Answers in the page what is asked, and what the worker left unanswered.
function mineHere() {
  miner.worker?.terminate();
  miner.worker = null;
  const { runs, albums } = JSON.parse(el("data").textContent);
  miner.mined = runs.map((run) => mineable(run, albums));
  el("here").hidden = false;
  for (const { question, resolve } of miner.waiting.values()) later(() => resolve(answered(question)));
  miner.waiting.clear();
}

const answered = ({ name, run, rest }) => answers[name](miner.mined[run], ...rest);

// A promise of the answer of this name about runs[run].
function ask(name, run, ...rest) {
  const question = { number: miner.asked++, name, run, rest };
  return new Promise((resolve) => {
    if (!miner.worker) return later(() => resolve(answered(question)));
    miner.waiting.set(question.number, { question, resolve });
    miner.worker.postMessage(question);
  });
}

const later = (work) => setTimeout(work, 0);
