(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var root = document.documentElement;

  // theme: follows the system until the button is used
  var button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; }
  function name() { button.textContent = isDark() ? "Light" : "Dark"; }
  button.hidden = false;
  name();
  button.addEventListener("click", function () { root.dataset.theme = isDark() ? "light" : "dark"; name(); });

  function value(row, column, kind) {
    if (kind === "index") { return Number(row.id.split("-").pop()); }
    var cell = row.cells[column], found;
    if (kind === "bits") { found = /\d+/.exec(cell.textContent); return found ? Number(found[0]) : 0; }
    if (kind === "text") { return cell.textContent; }
    found = /, (\S+) nats/.exec(cell.title);
    return found ? Number(found[1].replace("\u2212", "-")) : -1;
  }

  function save(text, file) {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = file;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }

  document.querySelectorAll(".model-section").forEach(function (section) {
    var table = section.querySelector(".heat");
    var body = table.tBodies[0];
    var rows = Array.from(body.rows);
    var heads = Array.from(table.tHead.rows[0].cells);

    // sorting
    heads.forEach(function (head, column) {
      var kind = head.dataset.sort;
      if (!kind) { return; }
      var control = document.createElement("button");
      control.type = "button";
      control.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(control);
      control.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") === "ascending";
        var first = kind === "text" || kind === "index" ? "ascending" : "descending";
        var order = head.hasAttribute("aria-sort") ? (up ? "descending" : "ascending") : first;
        heads.forEach(function (h) { h.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", order);
        var sign = order === "ascending" ? 1 : -1;
        rows.map(function (row) { return [value(row, column, kind), row]; }).sort(function (a, b) {
          return sign * (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0);
        }).forEach(function (pair) { body.appendChild(pair[1]); });
      });
    });

    // filtering
    var filters = section.querySelector(".filters");
    filters.hidden = false;
    var input = filters.querySelector("input"), shown = filters.querySelector("output");
    input.addEventListener("input", function () {
      var wanted = input.value.toLowerCase(), count = 0;
      rows.forEach(function (row) {
        var text = (row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase();
        row.hidden = text.indexOf(wanted) < 0;
        count += row.hidden ? 0 : 1;
      });
      shown.textContent = wanted ? count + " of " + rows.length : "";
    });

    // the numbers of one cell: under the pointer, touched, or reached with the arrow keys
    var readout = filters.querySelector(".readout");
    var reasons = section.querySelectorAll(".why tbody tr");
    function words(label) { return /^\d+$/.test(label) ? label + " bits" : label; }
    function read(cell) {
      var name = cell.parentNode.cells[0].textContent, bits = heads[cell.cellIndex].dataset.b;
      var noise = cell.classList.contains("noise") ? "; not distinguishable from zero" : "";
      var reason = reasons[rows.indexOf(cell.parentNode)];
      if (cell.title) { readout.textContent = name + " at " + words(bits) + ": " + cell.title + noise; }
      else if (reason) { readout.textContent = name + ": " + words(reason.cells[1].textContent) + " recommended, " + reason.cells[2].textContent; }
    }
    function cellOf(event) { return event.target.closest("tbody td, tbody th"); }
    var pointer = "";
    ["mousemove", "click", "focusin"].forEach(function (kind) {
      body.addEventListener(kind, function (event) {
        // the table scrolling under a pointer at rest is no pointing
        var place = event.clientX + " " + event.clientY, rests = kind === "mousemove" && place === pointer;
        var cell = cellOf(event);
        pointer = kind === "mousemove" ? place : pointer;
        if (cell && !rests) { read(cell); }
      });
    });
    var current = rows[0].cells[0];
    current.tabIndex = 0;
    function go(cell) {
      current.removeAttribute("tabindex");
      current = cell;
      cell.tabIndex = 0;
      cell.focus();
    }
    body.addEventListener("keydown", function (event) {
      var cell = cellOf(event), next = null, row = cell && cell.parentNode, column = cell && cell.cellIndex;
      if (event.key === "ArrowRight") { next = cell.nextElementSibling; }
      if (event.key === "ArrowLeft") { next = cell.previousElementSibling; }
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        do { row = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling; } while (row && row.hidden);
        next = row && row.cells[column];
      }
      if (next) { event.preventDefault(); go(next); }
    });

    // what if: the bits of a precomputed point of the front
    var box = section.querySelector(".whatif");
    if (!box) { return; }
    var front = data.models[Number(section.dataset.model)].front;
    var slider = box.querySelector("input"), out = box.querySelector("output");
    var link = section.querySelector(".plan");
    var chosen = rows.map(function (row) { return row.querySelector(".bits strong").textContent; });
    var nearest = 0, mean = Number(box.dataset.avg), picked = null;
    front.forEach(function (p, i) { if (Math.abs(p.avg - mean) < Math.abs(front[nearest].avg - mean)) { nearest = i; } });
    box.hidden = false;
    function show(bits) {
      rows.forEach(function (row, i) {
        var cell = row.querySelector(".bits");
        cell.querySelector("strong").textContent = bits[i];
        heads.forEach(function (head, column) {
          if (head.dataset.b) { row.cells[column].classList.toggle("pick", head.dataset.b === bits[i]); }
        });
      });
    }
    function reset() {
      picked = null;
      slider.value = nearest;
      show(chosen);
      out.textContent = "The recommended plan is shown.";
    }
    function pick() {
      picked = front[Number(slider.value)];
      show(Array.from(picked.bits).map(function (c) { return c === "g" ? "16" : c; }));
      var words = picked.avg.toFixed(2) + " bits, " + picked.mb.toFixed(2) + " MB, predicted " + box.dataset.loss + " " +
        picked.drop.toFixed(1) + " points (" + picked.low.toFixed(1) + " to " + picked.high.toFixed(1) + ")";
      slider.setAttribute("aria-valuetext", words);
      out.textContent = words + ". The same plan by command: " + box.dataset.command + picked.avg.toFixed(3);
    }
    // the file of the recommended plan with other bits; what was measured does not hold for them
    function plan() {
      var raw = atob(link.href.split(",")[1]);
      var text = new TextDecoder().decode(Uint8Array.from(raw, function (c) { return c.charCodeAt(0); }));
      if (!picked) { return text; }
      var made = JSON.parse(text), bits = {};
      rows.forEach(function (row) { bits[row.cells[0].textContent] = row.querySelector(".bits strong").textContent; });
      made.modules.forEach(function (module) {
        var label = bits[module.name], whole = /^\d+$/.test(label);
        module.bits = heads.reduce(function (n, h) { return h.dataset.b === label ? Number(h.dataset.bits) : n; }, module.bits);
        if (module.weight) { module.weight = whole ? "int" + label : label; }
        if (module.activation) { module.activation = whole ? "uint" + label : label; }
        module.reason = "";
      });
      made.budget = "avg-bits=" + picked.avg.toFixed(3);
      made.cost = { avg_bits: picked.avg, size_mb: picked.mb, bitops_g: picked.gb };
      made.predicted = { drop: picked.drop, low: picked.low, high: picked.high };
      made.measured = null;
      return JSON.stringify(made, null, 1) + "\n";
    }
    slider.addEventListener("input", pick);
    box.querySelector(".reset").addEventListener("click", reset);
    box.querySelector(".save").addEventListener("click", function () { save(plan(), link.download); });
    reset();
  });

  // printing shows everything
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  });
})();
