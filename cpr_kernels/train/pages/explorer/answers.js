// What the page asks of its mining. This script runs in a worker, and in the page where no worker starts.

const answers = {
  // What a query mines, stage by stage, and its similarities in some views: {view: Float64Array}.
  trace(run, stages, query, views) {
    return { traced: cascade(run, stages, query), values: Object.fromEntries(views.map((view) => [view, similarities(run, view, query)])) };
  },

  // Entries mined, and right ones among them, by queries spread evenly over a run: from the one numbered `at`, for 12 ms.
  average(run, stages, at, wanted) {
    const sum = { at, right: 0, mined: 0 }, until = performance.now() + 12;
    do {
      const query = Math.floor((sum.at++ * run.entries) / wanted);
      if (run.classes[query] < 0) continue;
      const last = cascade(run, stages, query).at(-1);
      sum.right += last?.right ?? 0;
      sum.mined += last?.kept.length ?? 0;
    } while (sum.at < wanted && performance.now() < until);
    return sum;
  },
};

if (!self.document) {
  let runs = [];
  self.onmessage = ({ data: { started, number, name, run, rest } }) => {
    if (started) runs = started;
    else self.postMessage({ number, found: answers[name](runs[run], ...rest) });
  };
}
